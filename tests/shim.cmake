# Programs run under the preloaded library, on the small model packed and plain; those that touch views, on every rung.
if(CWS_TESTS AND TARGET codecshim)
  set(plain ${CMAKE_CURRENT_SOURCE_DIR}/models/bard/model.safetensors)
  set(packed ${CMAKE_CURRENT_BINARY_DIR}/shim_model.safetensors)
  add_test(NAME shim_pack COMMAND sh -c "rm -f '${packed}'; '$<TARGET_FILE:codecllm>' pack --quiet '${plain}' '${packed}'")
  set_tests_properties(shim_pack PROPERTIES FIXTURES_SETUP shim_model)

  # With a sanitizer the shim is preloaded before the sanitizer's runtime, which so sees what the hooks pass on, and checks its
  # buffers. liburing's own system calls are not seen: ThreadSanitizer would take a ring's memory for what was there before.
  # By name, found through LD_LIBRARY_PATH: LD_PRELOAD cannot hold a path with a space.
  set(preload $<TARGET_FILE_NAME:codecshim>)
  set(sanitizer_environment)
  if(CWS_SANITIZE)
    set(own_faults handle_segv=0:handle_sigbus=0:handle_abort=0:handle_sigill=0:handle_sigfpe=0) # tests die by signals
    add_library(sanitizer_gate SHARED sanitizer_gate.c)
    target_compile_definitions(sanitizer_gate PRIVATE _GNU_SOURCE)
    target_compile_options(sanitizer_gate PRIVATE -Wall -Wextra -fvisibility=default -U_FORTIFY_SOURCE)
    target_link_libraries(sanitizer_gate PRIVATE ${CMAKE_DL_LIBS})
    set(preload "$<TARGET_FILE_NAME:sanitizer_gate>:${preload}")
    if(CWS_SANITIZE STREQUAL "thread")
      set(sanitizer_environment CODEC_IO=preadv TSAN_OPTIONS=${own_faults})
    else()
      set(sanitizer_environment ASAN_OPTIONS=${own_faults}:verify_asan_link_order=0 UBSAN_OPTIONS=print_stacktrace=1)
    endif()
  endif()

  function(cws_shim_test name)
    add_executable(${name} ${name}.c)
    target_include_directories(${name} SYSTEM PRIVATE ${CWS_cmocka_INCLUDE})
    target_compile_options(${name} PRIVATE -U_FORTIFY_SOURCE)
    target_link_libraries(${name} PRIVATE ${CWS_cmocka_LIBRARY} cws_flags Threads::Threads ${CMAKE_DL_LIBS})
    cws_rungs(rungs ${ARGN})
    foreach(rung ${rungs})
      set(test ${name}_${rung})
      add_test(NAME ${test} COMMAND ${name})
      set(environment CWS_SHIM_PACKED=${packed} CWS_SHIM_PLAIN=${plain} CODEC_VRAM_BUDGET=2M CODEC_PAGER=${rung}
        LD_LIBRARY_PATH=${CMAKE_LIBRARY_OUTPUT_DIRECTORY} LD_PRELOAD=${preload} ${sanitizer_environment})
      set_tests_properties(${test} PROPERTIES TIMEOUT ${CWS_HANG_SECONDS} SKIP_RETURN_CODE 77 FIXTURES_REQUIRED shim_model
        ENVIRONMENT "${environment}")
    endforeach()
  endfunction()

  cws_shim_test(test_shim_files uffd-dev uffd uffd-user sigsegv eager)
  cws_shim_test(test_shim_stdio uffd-dev uffd-user sigsegv)
  cws_rungs(rungs uffd-dev uffd-user sigsegv eager)
  cws_shim_test(test_shim_leave ${rungs})
  list(TRANSFORM rungs PREPEND test_shim_leave_ OUTPUT_VARIABLE tests)
  if(CWS_SANITIZE STREQUAL "address") # which takes the frames on a cancelled thread's stack for live ones
    set_property(TEST ${tests} APPEND PROPERTY
      ENVIRONMENT ASAN_OPTIONS=${own_faults}:verify_asan_link_order=0:detect_stack_use_after_return=1)
  elseif(CWS_SANITIZE STREQUAL "thread") # a handler maps, which allocates: not while malloc is interrupted
    set_property(TEST ${tests} APPEND PROPERTY ENVIRONMENT TSAN_OPTIONS=${own_faults}:report_signal_unsafe=0)
  else() # through threads, not a ring
    set_property(TEST test_shim_leave_uffd-user test_shim_leave_eager APPEND PROPERTY ENVIRONMENT CODEC_IO=preadv)
  endif()
  cws_shim_test(test_shim_views uffd-dev uffd uffd-user sigsegv eager)
  # A model of a few pages, of which hundreds of copies are made.
  set(packed ${CMAKE_CURRENT_BINARY_DIR}/shim_small.safetensors)
  set(plain ${CMAKE_CURRENT_SOURCE_DIR}/golden/all-dtypes.safetensors)
  configure_file(golden/all-dtypes.cws ${packed} COPYONLY)
  cws_shim_test(test_shim_many uffd-dev uffd uffd-user sigsegv eager)
  set(packed ${CMAKE_CURRENT_BINARY_DIR}/shim_model.safetensors)
  set(plain ${CMAKE_CURRENT_SOURCE_DIR}/models/bard/model.safetensors)
  cws_shim_test(test_shim_fortify uffd-dev uffd-user sigsegv)
  target_compile_options(test_shim_fortify PRIVATE -O2 -D_FORTIFY_SOURCE=3) # behind -U_FORTIFY_SOURCE
  add_test(NAME shim_fortified_names COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/fortified_names.sh $<TARGET_FILE:test_shim_fortify>)
  if(NOT CWS_SANITIZE STREQUAL "thread") # which cannot follow the forked children of a process with threads
    cws_shim_test(test_shim_process uffd-dev uffd-user sigsegv eager)
    cws_shim_test(test_shim_signal uffd-dev uffd uffd-user sigsegv eager)
    target_link_options(test_shim_signal PRIVATE -Wl,-z,now) # finding a function at its first call takes 3 KiB of the stack that it is called on
  endif()
  # Fault injection lies between the shim and the C library, or a sanitizer's runtime.
  add_library(shim_inject SHARED shim_inject.c)
  target_compile_definitions(shim_inject PRIVATE _GNU_SOURCE)
  target_compile_options(shim_inject PRIVATE -Wall -Wextra -fvisibility=default -fno-builtin -U_FORTIFY_SOURCE)
  target_link_libraries(shim_inject PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
  string(APPEND preload ":$<TARGET_FILE_NAME:shim_inject>")
  if(NOT CWS_SANITIZE STREQUAL "thread")
    cws_shim_test(test_shim_inject uffd-dev uffd-user sigsegv)
    target_link_libraries(test_shim_inject PRIVATE shim_inject)
    # Reads by the ring are not seen here; the store's own tests have them fail.
    set_property(TEST test_shim_inject_sigsegv test_shim_inject_uffd-user APPEND PROPERTY ENVIRONMENT CODEC_IO=preadv)
  endif()

  if(NOT CWS_SANITIZE) # whose shadow memory does not fit the control group
    add_executable(test_cgroup_budget test_cgroup_budget.c)
    target_link_libraries(test_cgroup_budget PRIVATE cws_flags ${CMAKE_DL_LIBS})
    add_test(NAME test_cgroup_budget COMMAND test_cgroup_budget $<TARGET_FILE:codecllm> $<TARGET_FILE_NAME:codecshim>
      ${CMAKE_CURRENT_BINARY_DIR}/cgroup_budget)
    set_tests_properties(test_cgroup_budget PROPERTIES TIMEOUT ${CWS_HANG_SECONDS} SKIP_RETURN_CODE 77
      ENVIRONMENT LD_LIBRARY_PATH=${CMAKE_LIBRARY_OUTPUT_DIRECTORY})
  endif()

  if(CWS_STATIC_DEPS AND NOT CWS_SANITIZE)
    add_test(NAME shim_exports COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/shim_exports.sh $<TARGET_FILE:codecshim>
      ${PROJECT_SOURCE_DIR}/shim/libc/hooks.def ${PROJECT_SOURCE_DIR}/shim/cuda/hooks.def)
  endif()
endif()
