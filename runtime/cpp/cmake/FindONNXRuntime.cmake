# Finds ONNX Runtime: at ONNXRUNTIME_ROOT (a variable or of the environment), else by pkg-config,
# else where compilers look.
#
#   ONNXRuntime::headers        its C++ header, nothing to link: the library is loaded at run time
#   ONNXRuntime_LIBRARY_DIR     the folder of libonnxruntime, empty where only headers are here
#   ONNXRuntime_API_VERSION     of the header
find_package(PkgConfig QUIET)
if(PkgConfig_FOUND AND NOT ONNXRUNTIME_ROOT AND NOT DEFINED ENV{ONNXRUNTIME_ROOT})
  pkg_check_modules(PC_ONNXRuntime QUIET libonnxruntime)
endif()

set(roots ${ONNXRUNTIME_ROOT} $ENV{ONNXRUNTIME_ROOT})
find_path(ONNXRuntime_INCLUDE_DIR onnxruntime_cxx_api.h
  HINTS ${roots} ${PC_ONNXRuntime_INCLUDE_DIRS}
  PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session onnxruntime
                onnxruntime/core/session)
find_library(ONNXRuntime_LIBRARY NAMES onnxruntime libonnxruntime.so.1
  HINTS ${roots} ${PC_ONNXRuntime_LIBRARY_DIRS} PATH_SUFFIXES lib lib64)
mark_as_advanced(ONNXRuntime_INCLUDE_DIR ONNXRuntime_LIBRARY)

if(ONNXRuntime_INCLUDE_DIR)
  file(STRINGS "${ONNXRuntime_INCLUDE_DIR}/onnxruntime_c_api.h" ONNXRuntime_API_VERSION
       REGEX "^#define ORT_API_VERSION ")
  string(REGEX REPLACE "^#define ORT_API_VERSION ([0-9]+).*" "\\1" ONNXRuntime_API_VERSION
         "${ONNXRuntime_API_VERSION}")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(ONNXRuntime
  REQUIRED_VARS ONNXRuntime_INCLUDE_DIR ONNXRuntime_API_VERSION
  REASON_FAILURE_MESSAGE "set ONNXRUNTIME_ROOT to the folder that holds its include/ and lib/")

if(ONNXRuntime_FOUND)
  set(ONNXRuntime_LIBRARY_DIR "")
  if(ONNXRuntime_LIBRARY)
    get_filename_component(ONNXRuntime_LIBRARY_DIR "${ONNXRuntime_LIBRARY}" DIRECTORY)
  endif()
  if(NOT TARGET ONNXRuntime::headers)
    add_library(ONNXRuntime::headers INTERFACE IMPORTED)
    target_include_directories(ONNXRuntime::headers INTERFACE "${ONNXRuntime_INCLUDE_DIR}")
  endif()
endif()
