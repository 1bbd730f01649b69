#include "calc.h"
#include <stdlib.h>

int parse_number(const char **text, double *value)
{
    char *end;

    *value = strtod(*text, &end);
    if (end == *text) {
        complain("'%s' does not begin with a number", *text);
        return -1;
    }
    *text = end;
    return 0;
}
