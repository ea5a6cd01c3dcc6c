/*
 * ab_caught.c
 *	  Errors that are caught outside of a subtransaction, and told another way.
 *
 * Any process; no locks, and nothing that a crash could leave.
 */
#include "ab_caught.h"

#include "miscadmin.h"

AbBeforeTry
ab_before_try(void)
{
	return (AbBeforeTry) {.cxt = CurrentMemoryContext, .holdoff = InterruptHoldoffCount};
}

/* To raise it has let interrupts through: who held them off still counts on that. */
ErrorData *
ab_caught(const AbBeforeTry *before)
{
	ErrorData  *error;

	MemoryContextSwitchTo(before->cxt);
	error = CopyErrorData();
	FlushErrorState();
	InterruptHoldoffCount = before->holdoff;
	return error;
}

ErrorData *
ab_caught_damage(const AbBeforeTry *before)
{
	if (geterrcode() != ERRCODE_DATA_CORRUPTED && geterrcode() != ERRCODE_UNDEFINED_FILE)
		PG_RE_THROW();
	return ab_caught(before);
}
