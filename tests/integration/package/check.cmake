# Run by ctest, see CMakeLists.txt: installs the components that it is about, builds consumer/ against them, runs it.
function(run what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(code)
    message(FATAL_ERROR "${what}: ${code}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

set(prefix ${WORK}/prefix)
file(REMOVE_RECURSE ${prefix} ${WORK}/consumer)
foreach(component engine c)
  run("install ${component}" ${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix} --component ${component})
endforeach()

# Whatever a public header includes must be installed too.
file(GLOB_RECURSE headers RELATIVE ${prefix}/include/expertd ${prefix}/include/expertd/kernels/*.h)
list(TRANSFORM headers REPLACE "(.+)" "#include \"\\1\"\n" OUTPUT_VARIABLE includes)
string(JOIN "" includes ${includes})
file(WRITE ${WORK}/every_header.cc "${includes}")

run(configure ${CMAKE_COMMAND} -S ${CONSUMER} -B ${WORK}/consumer -G ${GENERATOR} -D CMAKE_PREFIX_PATH=${prefix}
  -D CMAKE_BUILD_TYPE=Release -D CMAKE_CXX_COMPILER=${CXX} -D VERSION=${VERSION} -D EVERY_HEADER=${WORK}/every_header.cc)
run(build ${CMAKE_COMMAND} --build ${WORK}/consumer)
run("C++ program" ${WORK}/consumer/consumer ${CHECKPOINT})
message(STATUS "${output}")
run("C program" ${WORK}/consumer/c_consumer ${CHECKPOINT})
message(STATUS "${output}")

# A component that is not there is an error that names it.
execute_process(COMMAND ${CMAKE_COMMAND} -S ${CONSUMER} -B ${WORK}/consumer/missing -G ${GENERATOR}
  -D CMAKE_PREFIX_PATH=${prefix} -D VERSION=${VERSION} -D EVERY_HEADER=${WORK}/every_header.cc -D MORE=nonsense
  RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT code OR NOT output MATCHES "nonsense")
  message(FATAL_ERROR "find_package(expertd COMPONENTS nonsense) answered ${code}: ${output}")
endif()

# The C library shows the functions of its headers and nothing else.
run(nm ${NM} -D --defined-only --format=posix ${prefix}/lib/libexpertd_c.so)
string(REGEX MATCHALL "[^\n]+" symbols "${output}")
list(LENGTH symbols count)
list(FILTER symbols EXCLUDE REGEX "^(expertd_|EXPERTD_1)")
if(symbols OR count LESS 20)
  message(FATAL_ERROR "libexpertd_c.so shows ${count} symbols, among them not ours: ${symbols}")
endif()
