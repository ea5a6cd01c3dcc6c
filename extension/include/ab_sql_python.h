/*
 * ab_sql_python.h
 *	  Language agent_branch_python, in which functions of the extension are written.
 */
#ifndef AB_SQL_PYTHON_H
#define AB_SQL_PYTHON_H

#include "ab_compat.h"

/* Does this process run one of them, or something that it has called? */
extern bool ab_sql_python_is_running(void);

#endif							/* AB_SQL_PYTHON_H */
