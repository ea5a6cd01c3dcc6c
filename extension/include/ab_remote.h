/*
 * ab_remote.h
 *	  Running statements in another database of the cluster with the caller's rights:
 *	  a dynamic background worker connects to it as the caller's current role; no
 *	  password, no pg_hba line, nothing but that role's privileges.
 */
#ifndef AB_REMOTE_H
#define AB_REMOTE_H

#include "ab_compat.h"

/*
 * Run one or more statements in their own transaction; raises their error here
 * with its SQLSTATE, message, detail and hint.  Waits for the end; a cancel of the
 * caller ends the worker too.
 */
extern void ab_remote_execute(Oid db, const char *sql);

#endif							/* AB_REMOTE_H */
