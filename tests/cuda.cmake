# The CUDA side. What needs cuda.h is built only where a toolkit is installed.
find_path(CWS_CUDA_INCLUDE cuda.h PATHS /usr/local/cuda/include ENV CUDA_PATH PATH_SUFFIXES include)
if(CWS_CUDA_INCLUDE)
  cws_test(NAME test_cuda_abi SOURCES test_cuda_abi.c cuda_abi_theirs.c LIBS cws_store)
  if(TARGET test_cuda_abi)
    target_include_directories(test_cuda_abi SYSTEM PRIVATE ${CWS_CUDA_INCLUDE})
  endif()
endif()

# The stand-in for the driver, and what is tested against it.
if(CWS_TESTS)
  add_subdirectory(standin)
  cws_test(NAME test_standin SOURCES test_standin.c LIBS cws_standin cws_store ${CMAKE_DL_LIBS})
  target_compile_definitions(test_standin PRIVATE STANDIN_LIBRARY="$<TARGET_FILE:cws_standin_driver>")
  add_dependencies(test_standin cws_standin_driver)
  cws_test(NAME test_standin_gpu SOURCES test_standin_gpu.c LIBS cws_gpu cws_standin m)
endif()

if(TARGET cws_standin)
  cws_test(NAME test_gpu TIMEOUT 300 SOURCES test_gpu.c sample_model.c LIBS cws_uvm cws_standin m)
  cws_test(NAME test_gpu_contract TIMEOUT 120 SOURCES test_gpu_contract.c sample_model.c LIBS cws_uvm cws_standin m)
  cws_test(NAME stress_gpu TIMEOUT 300 SOURCES stress_gpu.c sample_model.c LIBS cws_uvm cws_standin m)
endif()
