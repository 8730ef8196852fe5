# Finds TensorRT (or TensorRT-RTX) and the CUDA runtime that it stands on: at TENSORRT_ROOT and
# CUDAToolkit_ROOT (variables or of the environment), else where compilers look.
#
#   TensorRT::TensorRT          the headers, libnvinfer and libcudart
set(roots ${TENSORRT_ROOT} $ENV{TENSORRT_ROOT})
set(cuda_roots ${CUDAToolkit_ROOT} $ENV{CUDAToolkit_ROOT} ${roots} /usr/local/cuda)
set(suffixes lib lib64 lib/x86_64-linux-gnu targets/x86_64-linux/lib)
find_path(TensorRT_INCLUDE_DIR NvInfer.h HINTS ${roots} PATH_SUFFIXES include)
find_library(TensorRT_LIBRARY NAMES nvinfer tensorrt_rtx HINTS ${roots} PATH_SUFFIXES ${suffixes})
find_path(TensorRT_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ${cuda_roots}
  PATH_SUFFIXES include targets/x86_64-linux/include)
find_library(TensorRT_CUDART_LIBRARY NAMES cudart HINTS ${cuda_roots} PATH_SUFFIXES ${suffixes})
mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_LIBRARY TensorRT_CUDA_INCLUDE_DIR
                 TensorRT_CUDART_LIBRARY)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT
  REQUIRED_VARS TensorRT_INCLUDE_DIR TensorRT_LIBRARY TensorRT_CUDA_INCLUDE_DIR
                TensorRT_CUDART_LIBRARY
  REASON_FAILURE_MESSAGE "set TENSORRT_ROOT to NVIDIA's SDK, CUDAToolkit_ROOT to CUDA's")

if(TensorRT_FOUND AND NOT TARGET TensorRT::TensorRT)
  add_library(TensorRT::TensorRT INTERFACE IMPORTED)
  target_include_directories(TensorRT::TensorRT INTERFACE
    "${TensorRT_INCLUDE_DIR}" "${TensorRT_CUDA_INCLUDE_DIR}")
  target_link_libraries(TensorRT::TensorRT INTERFACE
    "${TensorRT_LIBRARY}" "${TensorRT_CUDART_LIBRARY}")
endif()
