# Every test of views runs itself once per rung (pattern_source.c).
cws_test(NAME test_view SOURCES test_view.c pattern_source.c LIBS cws_uvm)
