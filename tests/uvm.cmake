# Every test of views runs itself once per rung (pattern_source.c).
cws_test(NAME test_policy SOURCES test_policy.c LIBS cws_uvm)
cws_test(NAME test_view SOURCES test_view.c pattern_source.c LIBS cws_uvm)
cws_test(NAME test_view_change SOURCES test_view_change.c pattern_source.c LIBS cws_uvm)
cws_test(NAME test_view_fork SOURCES test_view_fork.c pattern_source.c LIBS cws_uvm)
if(CWS_INJECT)
  cws_test(NAME test_pager SOURCES test_pager.c pattern_source.c LIBS cws_uvm)
endif()
cws_test(NAME stress_view SOURCES stress_view.c pattern_source.c LIBS cws_uvm)
