/*
 * ab_compat.h
 *	  Which servers this library is built for, and the few names that differ
 *	  between them.  Nothing else in the tree asks for PG_VERSION_NUM, except
 *	  ab_attach.c, which owns the storage manager's signatures.
 */
#ifndef AB_COMPAT_H
#define AB_COMPAT_H

#include "postgres.h"

#if PG_VERSION_NUM < 150011 || PG_VERSION_NUM >= 160000
#error "agent_branch supports PostgreSQL 15 from 15.11 on"
#endif

#endif							/* AB_COMPAT_H */
