# Every test of views runs itself once per rung (pattern_source.c).
cws_test(NAME test_policy SOURCES test_policy.c LIBS cws_uvm)
cws_test(NAME test_view SOURCES test_view.c pattern_source.c LIBS cws_uvm)
cws_test(NAME test_view_change SOURCES test_view_change.c pattern_source.c LIBS cws_uvm)
cws_test(NAME test_view_fork SOURCES test_view_fork.c pattern_source.c LIBS cws_uvm)
cws_test(NAME test_view_store SOURCES test_view_store.c pattern_source.c LIBS cws_uvm)
cws_test(NAME test_view_trace SOURCES test_view_trace.c pattern_source.c sample_model.c trace_file.c LIBS cws_uvm cws_dep_jansson m)
# Fault injection replaces these at link time (inject_sys.h); every system call of uvm/ and store/ goes through syscall().
set(SYS_WRAPS syscall malloc calloc realloc aligned_alloc free mmap memfd_create epoll_create1 eventfd epoll_ctl pthread_create pthread_atfork sigaction)
list(TRANSFORM SYS_WRAPS PREPEND "-Wl,--wrap=")
cws_test(NAME test_pager_inject SOURCES test_pager_inject.c inject_sys.c pattern_source.c LIBS cws_uvm ARGS uffd-dev once)
if(TARGET test_pager_inject)
  target_link_options(test_pager_inject PRIVATE ${SYS_WRAPS})
  foreach(rung uffd-dev uffd uffd-user sigsegv eager) # a test each: there are many failures to try
    foreach(half once lasting)
      if(NOT "${rung} ${half}" STREQUAL "uffd-dev once")
        add_test(NAME test_pager_inject_${rung}_${half} COMMAND test_pager_inject ${rung} ${half})
        set_tests_properties(test_pager_inject_${rung}_${half} PROPERTIES TIMEOUT 120 SKIP_RETURN_CODE 77)
      endif()
    endforeach()
  endforeach()
endif()
if(CWS_INJECT)
  cws_test(NAME test_pager SOURCES test_pager.c pattern_source.c LIBS cws_uvm)
endif()
cws_test(NAME stress_view SOURCES stress_view.c pattern_source.c LIBS cws_uvm)
# What the policies make of real models' sizes.
cws_test(NAME test_replay SOURCES test_replay.c sample_model.c ${PROJECT_SOURCE_DIR}/tools/replay_device.c ${PROJECT_SOURCE_DIR}/tools/replay_host.c
  ${PROJECT_SOURCE_DIR}/tools/replay_trace.c LIBS cws_uvm cws_store cws_dep_jansson m)
