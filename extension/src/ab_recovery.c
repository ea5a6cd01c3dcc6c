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

#include "ab_file.h"

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
