#include "calc.h"
#include <stdio.h>

void usage(const char *program)
{
    fprintf(stderr, "usage: %s EXPRESSION\n", program);
}
