#include "calc.h"
#include <ctype.h>
#include <string.h>

int lex(const char *text, struct tokens *out)
{
    while (*text != '\0') {
        struct token token = {0};

        if (isspace((unsigned char)*text)) {
            text++;
            continue;
        }
        if (isdigit((unsigned char)*text) || *text == '.') {
            token.kind = NUMBER;
            if (parse_number(&text, &token.value) != 0)
                return -1;
        } else if (isalpha((unsigned char)*text)) {
            size_t length = 0;

            token.kind = NAME;
            while (isalpha((unsigned char)*text) && length < sizeof token.text - 1)
                token.text[length++] = *text++;
        } else if (strchr("+-*/^", *text) != NULL) {
            token.kind = OPERATOR;
            token.text[0] = *text++;
        } else if (*text == '(' || *text == ')') {
            token.kind = *text++ == '(' ? OPEN : CLOSE;
        } else {
            complain("unexpected '%c'", *text);
            return -1;
        }
        if (tokens_push(out, token) != 0)
            return -1;
    }
    return 0;
}
