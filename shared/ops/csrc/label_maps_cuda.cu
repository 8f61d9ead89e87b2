// render_label_maps on CUDA: a block a tile, which writes each of its pixels once.
#include "label_maps.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>

namespace d2ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 4;                      // rows a thread writes, kWarps apart
constexpr int kTileRows = kWarps * kRows;  // 32

// Columns a thread writes in each of its rows: 16 bytes. A warp writes 512 bytes side by side.
template <typename scalar_t>
constexpr int kColumns = 16 / sizeof(scalar_t);

template <typename scalar_t>
struct alignas(16) Pack {
  scalar_t at[kColumns<scalar_t>];
};

template <typename acc_t>
struct Object {
  Extent<acc_t> x, y;
  acc_t factor;
  const bool* mask;
};

// Whether the box reaches a point of first..last: the position rises with the index.
template <typename acc_t>
__device__ bool reaches(const Extent<acc_t>& extent, int64_t first, int64_t last, acc_t offset) {
  return extent.length > 0 && extent.at(first, offset) <= acc_t(0.5) && extent.at(last, offset) >= acc_t(-0.5);
}

// value[r][k] = max with the object's pyramid, at rows row + r kWarps and columns column + k.
template <typename acc_t, int kPack>
__device__ void draw(const Object<acc_t>& object, int64_t row, int64_t column, int64_t height, int64_t width,
                     acc_t offset, acc_t (&value)[kRows][kPack]) {
  acc_t along[kPack];
#pragma unroll
  for (int k = 0; k < kPack; k++) {
    along[k] = std::abs(object.x.at(column + k, offset));
  }
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    const int64_t v = row + r * kWarps;
    const acc_t across = std::abs(object.y.at(v, offset));
#pragma unroll
    for (int k = 0; k < kPack; k++) {
      const acc_t pyramid = acc_t(1) - (along[k] > across ? along[k] : across);
      const bool inside = pyramid >= acc_t(0.5) && v < height && column + k < width;
      if (inside && (object.mask == nullptr || object.mask[v * width + column + k])) {
        const acc_t scaled = object.factor * pyramid;
        value[r][k] = value[r][k] < scaled ? scaled : value[r][k];
      }
    }
  }
}

// The first `left` of a thread's values in one row.
template <typename scalar_t, bool kAligned>
__device__ void store(const at::opmath_type<scalar_t> (&value)[kColumns<scalar_t>], int64_t left, scalar_t* out) {
  if constexpr (kAligned) {
    Pack<scalar_t> pack;
#pragma unroll
    for (int k = 0; k < kColumns<scalar_t>; k++) {
      pack.at[k] = static_cast<scalar_t>(value[k]);
    }
    *reinterpret_cast<Pack<scalar_t>*>(out) = pack;
  } else {
#pragma unroll
    for (int k = 0; k < kColumns<scalar_t>; k++) {
      if (k < left) {
        out[k] = static_cast<scalar_t>(value[k]);
      }
    }
  }
}

// grid: planes x rows of tiles x columns of tiles, in one dimension. Each round, every thread looks at one object and
// those that reach the tile are kept; their order does not matter for a maximum. kAligned: rows start at 16 bytes.
template <typename scalar_t, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    render_kernel(const at::opmath_type<scalar_t>* __restrict__ boxes, const int64_t* __restrict__ slots,
                  const at::opmath_type<scalar_t>* __restrict__ intensities, const int64_t* __restrict__ masks,
                  int64_t count, int64_t height, int64_t width, at::opmath_type<scalar_t> offset, int64_t tiles_y,
                  int64_t tiles_x, scalar_t* __restrict__ maps) {
  using acc_t = at::opmath_type<scalar_t>;
  constexpr int kPack = kColumns<scalar_t>;
  __shared__ alignas(alignof(Object<acc_t>)) unsigned char storage[kThreads * sizeof(Object<acc_t>)];
  __shared__ int kept;
  Object<acc_t>* objects = reinterpret_cast<Object<acc_t>*>(storage);  // no constructor may run in shared memory
  const int64_t plane = blockIdx.x / (tiles_y * tiles_x), tile = blockIdx.x % (tiles_y * tiles_x);
  const int64_t tile_row = tile / tiles_x * kTileRows, tile_column = tile % tiles_x * (32 * kPack);
  const int64_t last_row = tile_row + kTileRows < height ? tile_row + kTileRows - 1 : height - 1;
  const int64_t last_column = tile_column + 32 * kPack < width ? tile_column + 32 * kPack - 1 : width - 1;
  const int64_t row = tile_row + threadIdx.x / 32, column = tile_column + threadIdx.x % 32 * kPack;
  acc_t value[kRows][kPack] = {};
  for (int64_t base = 0; base < count; base += kThreads) {
    if (threadIdx.x == 0) {
      kept = 0;
    }
    __syncthreads();
    const int64_t i = base + threadIdx.x;
    if (i < count && slots[i] == plane) {
      const Extent<acc_t> x(boxes[4 * i], boxes[4 * i + 2]), y(boxes[4 * i + 1], boxes[4 * i + 3]);
      if (reaches(x, tile_column, last_column, offset) && reaches(y, tile_row, last_row, offset)) {
        const bool* mask = masks == nullptr ? nullptr : reinterpret_cast<const bool*>(masks[i]);
        objects[atomicAdd(&kept, 1)] = Object<acc_t>{x, y, intensities[i], mask};
      }
    }
    __syncthreads();
    for (int k = 0; k < kept; k++) {
      draw<acc_t, kPack>(objects[k], row, column, height, width, offset, value);
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    const int64_t v = row + r * kWarps;
    if (v < height && column < width) {
      store<scalar_t, kAligned>(value[r], width - column, maps + (plane * height + v) * width + column);
    }
  }
}

// Addresses of the masks, on the device; undefined without masks.
Tensor mask_addresses(const LabelObjects& objects) {
  if (objects.masks.empty()) {
    return {};
  }
  std::vector<int64_t> addresses;
  for (const Tensor& mask : objects.masks) {
    addresses.push_back(reinterpret_cast<int64_t>(mask.const_data_ptr<bool>()));
  }
  return at::from_blob(addresses.data(), {int64_t(addresses.size())}, at::kLong).to(objects.boxes.device());
}

template <typename scalar_t>
void launch(const LabelObjects& objects, const Tensor& masks, double offset, Tensor& maps) {
  using acc_t = at::opmath_type<scalar_t>;
  const int64_t planes = maps.size(0), height = maps.size(1), width = maps.size(2);
  const int64_t tile_columns = 32 * kColumns<scalar_t>;
  const int64_t tiles_y = (height + kTileRows - 1) / kTileRows, tiles_x = (width + tile_columns - 1) / tile_columns;
  TORCH_CHECK(planes <= std::numeric_limits<int>::max() / (tiles_y * tiles_x), "render_label_maps: ", planes,
              " planes of (", height, ", ", width, ") are more blocks than CUDA launches.");
  scalar_t* out = maps.mutable_data_ptr<scalar_t>();
  const bool aligned = width % kColumns<scalar_t> == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0;
  const auto kernel = aligned ? &render_kernel<scalar_t, true> : &render_kernel<scalar_t, false>;
  kernel<<<static_cast<unsigned int>(planes * tiles_y * tiles_x), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      objects.boxes.const_data_ptr<acc_t>(), objects.slots.const_data_ptr<int64_t>(),
      objects.intensities.const_data_ptr<acc_t>(), masks.defined() ? masks.const_data_ptr<int64_t>() : nullptr,
      objects.slots.size(0), height, width, static_cast<acc_t>(offset), tiles_y, tiles_x, out);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor render_label_maps_cuda(const Tensor& boxes, const Tensor& slots, const Tensor& intensities, at::TensorList masks,
                              int64_t planes, int64_t height, int64_t width, double offset, at::ScalarType dtype) {
  const LabelObjects objects = check_label_maps(boxes, slots, intensities, masks, planes, height, width, dtype);
  const c10::cuda::CUDAGuard guard(boxes.device());
  if (checks_cuda_values()) {
    raise_if_not_finite("render_label_maps", {{"boxes", &objects.boxes}, {"intensities", &objects.intensities}});
  }
  Tensor maps = at::empty({planes, height, width}, boxes.options().dtype(dtype));
  if (maps.numel() > 0) {
    const Tensor addresses = mask_addresses(objects);
    D2OPS_DISPATCH(dtype, "render_label_maps", [&] { launch<scalar_t>(objects, addresses, offset, maps); });
  }
  return maps;
}

}  // namespace

TORCH_LIBRARY_IMPL(d2ops, CUDA, m) { m.impl("render_label_maps", render_label_maps_cuda); }

}  // namespace d2ops
