/*
 * ab_recovery.c
 *	  Where recovery begins, and with what kind of files.
 *
 * The postmaster before recovery, the startup process in it.  Reads pg_control and
 * backup_label.
 */
#include "ab_recovery.h"

#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "access/xlogutils.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"

#include "ab_file.h"
#include "ab_shmem.h"

static bool
control_is_in_backup(const ControlFileData *control)
{
	return control->backupEndRequired ||
		!XLogRecPtrIsInvalid(control->backupStartPoint);
}

bool
ab_recovery_from_backup(const ControlFileData *control, XLogRecPtr *redo)
{
	size_t		len;
	char	   *label = ab_file_read(BACKUP_LABEL_FILE, &len);
	uint32		hi;
	uint32		lo;

	*redo = control->checkPointCopy.redo;
	if (label == NULL)
		return control_is_in_backup(control);
	label[len] = '\0';
	if (sscanf(label, "START WAL LOCATION: %X/%X", &hi, &lo) == 2)
		*redo = ((XLogRecPtr) hi) << 32 | lo;
	pfree(label);
	return true;
}

bool
ab_recovery_in_backup(void)
{
	static bool known = false;
	static bool began_so;

	if (reachedConsistency)
		return false;
	if (!known)
	{
		bool		crc_ok;
		ControlFileData *control = get_controlfile(".", &crc_ok);

		began_so = !crc_ok || control_is_in_backup(control);
		known = true;
		pfree(control);
	}
	return began_so;
}

bool
ab_recovery_is_consistent_at(XLogRecPtr end)
{
	bool		crc_ok;
	bool		consistent;
	ControlFileData *control;

	if (reachedConsistency)
		return true;
	control = get_controlfile(".", &crc_ok);
	consistent = crc_ok && !control_is_in_backup(control) &&
		!XLogRecPtrIsInvalid(control->minRecoveryPoint) &&
		control->minRecoveryPoint <= end;
	pfree(control);
	return consistent;
}

void
ab_recovery_begin(bool ahead, bool mixed)
{
	ab_shared->files_ahead = ahead || mixed;
	ab_shared->mixed_files = mixed;
}

void
ab_recovery_check(bool replay_is_over)
{
	if (likely(!ab_shared->files_ahead) || !(reachedConsistency || replay_is_over))
		return;
	ab_shared->files_ahead = false;
	ab_shared->mixed_files = false;

	/* what was tolerated so far is looked at again */
	for (int i = 0; i < AB_GENERATIONS; i++)
		pg_atomic_fetch_add_u32(&ab_shared->generation[i], 1);
}

bool
ab_recovery_files_are_ahead_here(void)
{
	if (!RecoveryInProgress())
		return false;
	return AmStartupProcess() ? !reachedConsistency : !OidIsValid(MyDatabaseId);
}

bool
ab_recovery_files_are_mixed(void)
{
	return ab_shared->mixed_files && ab_recovery_files_are_ahead();
}

static Oid	gaps[64];
static int	ngaps = 0;

bool
ab_recovery_note_gap(Oid db)
{
	for (int i = 0; i < ngaps; i++)
		if (gaps[i] == db)
			return false;
	if (ngaps < lengthof(gaps))
		gaps[ngaps++] = db;
	return true;
}

bool
ab_recovery_has_gap(Oid db)
{
	for (int i = 0; i < ngaps; i++)
		if (gaps[i] == db)
			return true;
	return ngaps == lengthof(gaps);
}
