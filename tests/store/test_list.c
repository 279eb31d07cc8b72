/* Description: a list keeps the order in which it was built; an element is in one list at a time, and may be removed
 * twice. */
#include "store/base/list.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

struct item {
    char name;
    struct cws_list link;
};

static void expect(const struct cws_list *head, const char *names)
{
    const struct cws_list *l = head->next;
    for (; *names; names++, l = l->next) {
        assert_ptr_not_equal(l, head);
        assert_int_equal(CWS_LIST_OF(l, const struct item, link)->name, *names);
        assert_ptr_equal(l->next->prev, l);
    }
    assert_ptr_equal(l, head);
    assert_int_equal(cws_list_is_empty(head), head->next == head);
}

static void order_is_that_of_adding(void **state)
{
    (void)state;
    struct cws_list head;
    struct item a = {.name = 'a'}, b = {.name = 'b'}, c = {.name = 'c'};
    cws_list_init(&head);
    assert_true(cws_list_is_empty(&head));
    cws_list_add_before(&head, &a.link);
    cws_list_add_before(&head, &c.link);
    cws_list_add_before(&c.link, &b.link);
    expect(&head, "abc");
    cws_list_add_before(head.next, &(struct item){.name = 'z'}.link);
    expect(&head, "zabc");
    cws_list_remove(head.next);
    cws_list_remove(&b.link);
    expect(&head, "ac");
    cws_list_remove(&b.link);
    expect(&head, "ac");
    cws_list_add_before(&head, &b.link);
    expect(&head, "acb");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_is_that_of_adding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
