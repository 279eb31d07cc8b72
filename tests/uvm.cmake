# Every test of views runs itself once per rung (pattern_source.c).
cws_test(NAME test_view SOURCES test_view.c pattern_source.c LIBS cws_uvm)
cws_test(NAME test_view_change SOURCES test_view_change.c pattern_source.c LIBS cws_uvm)
cws_test(NAME test_view_fork SOURCES test_view_fork.c pattern_source.c LIBS cws_uvm)
