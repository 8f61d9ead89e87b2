// sinkhorn on CUDA: one block per problem, all iterations in one launch. What a block does is in sinkhorn_block.cuh.
#include "sinkhorn_block.cuh"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <type_traits>

namespace d2ops {
namespace {

using namespace sinkhorn_cuda;

constexpr int64_t kSharedDuals = 32 * 1024;  // bytes of them that shared memory takes at most, before the rows of K

// Shared memory of a block, in this order: rows of K, partial sums of columns, a vector of columns, one of rows, one
// value a warp, duals. Without `log_domain` everything but the last two starts on 16 bytes where rows and cols do.
struct Layout {
  int64_t near_rows, groups, gradient_groups, partial, duals;
  size_t bytes;
};

template <typename T>
struct Batch {
  const T *cost, *norm_x, *norm_y;
  SinkhornSizes sizes;
  T eps;
  Layout layout;
  T* far;  // the other rows of K
  int64_t far_stride;
};

template <typename T>
struct Block {
  Cost<T> cost;
  Matrix<T> k;
  T *partial, *v, *w, *warps, *duals;

  __device__ Block(const Batch<T>& batch, int64_t n, unsigned char* shared) {
    const auto& sizes = batch.sizes;
    const int rows = sizes.rows, cols = sizes.cols;
    const bool norms = batch.norm_x != nullptr;
    cost = {batch.cost + n * rows * cols, norms ? batch.norm_x + n * rows : nullptr,
            norms ? batch.norm_y + n * cols : nullptr, rows, cols, batch.eps};
    const int near_rows = batch.layout.near_rows;
    k = {reinterpret_cast<T*>(shared), batch.far + n * batch.far_stride, near_rows, cols};
    partial = k.near + static_cast<int64_t>(near_rows) * cols;
    v = partial + batch.layout.partial;
    w = v + cols;
    warps = w + rows;
    duals = warps + kWarps;
  }

  __device__ void fill() const {
    const int lane = threadIdx.x % 32;
    for (int x = threadIdx.x / 32; x < cost.rows; x += kWarps) {
      T* row = k.row(x);
      for (int y = lane; y < cost.cols; y += 32) row[y] = ::exp(-cost.at(x, y) / cost.eps);
    }
    __syncthreads();
  }
};

// Alg. 1. The vectors v, w hold a, b; in the log domain their logarithms.
template <int N, bool LOG, typename T>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const Batch<T> batch, T* loss, T* plan, T* scalings) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int64_t n = blockIdx.x;
  const Block<T> block(batch, n, shared);
  const auto& cost = block.cost;
  const int rows = cost.rows, cols = cost.cols, groups = batch.layout.groups;
  T *a = block.v, *b = block.w;
  for (int x = threadIdx.x; x < rows; x += kThreads) b[x] = LOG ? -::log(static_cast<T>(rows)) : T(1) / rows;
  if constexpr (!LOG) block.fill();
  __syncthreads();
  for (int64_t t = 0; t < batch.sizes.iters; ++t) {
    T* save = scalings + (n * batch.sizes.saved + ::min(t, batch.sizes.saved - 1)) * batch.sizes.duals();
    if constexpr (LOG) {
      log_sum_columns(rows, cols, groups, block.partial, [&](int x, int y) { return b[x] - cost.at(x, y) / cost.eps; },
                      [&](int y, T sum) { a[y] = save[y] = -::log(static_cast<T>(cols)) - sum; });
      log_sum_rows<T>(rows, cols, [&](int x, int y) { return a[y] - cost.at(x, y) / cost.eps; },
                      [&](int x, T sum) { b[x] = save[cols + x] = -::log(static_cast<T>(rows)) - sum; });
    } else {
      multiply_columns<N>(block.k, rows, groups, block.partial, b,
                          [&](int y, T sum) { a[y] = save[y] = (T(1) / cols) / sum; });
      multiply_rows<N>(block.k, rows, a, [&](int x, T sum) { b[x] = save[cols + x] = (T(1) / rows) / sum; });
    }
  }
  if (threadIdx.x < kWarps) block.warps[threadIdx.x] = 0;
  __syncthreads();
  const auto term = [&](int x, int y) {
    const T q = cost.at(x, y);
    const T p = LOG ? ::exp(a[y] + b[x] - q / cost.eps) : block.k.row(x)[y] * a[y] * b[x];
    if (plan != nullptr) plan[(n * rows + x) * cols + y] = p;
    return p * q;
  };
  sum_rows<T>(rows, cols, term, [&](int, T sum) { block.warps[threadIdx.x / 32] += sum; });
  if (threadIdx.x != 0) return;
  T total = 0;
  for (int i = 0; i < kWarps; ++i) total += block.warps[i];
  loss[n] = total;
}

// The gradients of the row sums K a and the column sums K^T b of every iteration into `duals`; in the log domain of
// their logarithms. Leaves K filled.
template <int N, bool LOG, typename T>
__device__ inline void unroll(const Block<T>& block, const Batch<T>& batch, T grad, const T* scalings, T* duals) {
  const auto& cost = block.cost;
  const int rows = cost.rows, cols = cost.cols, groups = batch.layout.groups;
  const int64_t step = batch.sizes.duals(), last = batch.sizes.iters - 1;
  T *v = block.v, *w = block.w;
  const T *a = scalings + last * step, *b = a + cols, *a_before = nullptr;
  T* dual = duals + last * step;
  const auto p = [&](int x, int y, const T* a) {  // in the log domain P of that a and the present b, otherwise K a
    if constexpr (LOG) return ::exp(a[y] + b[x] - cost.at(x, y) / cost.eps);
    else return block.k.row(x)[y] * a[y];
  };
  const auto save_row = [&](int x, T sum) { w[x] = dual[cols + x] = LOG ? -sum * rows : -(sum * b[x]) * b[x] * rows; };
  const auto save_column = [&](int y, T sum) { v[y] = dual[y] = LOG ? -sum * cols : -(sum * a[y]) * a[y] * cols; };
  sum_rows<T>(rows, cols, [&](int x, int y) { return grad * cost.at(x, y) * p(x, y, a); }, save_row);
  sum_columns(rows, cols, groups, block.partial,
              [&](int x, int y) {
                const T weight = grad * cost.at(x, y) * (LOG ? T(1) : b[x]) + w[x];
                return weight * (LOG ? p(x, y, a) : block.k.row(x)[y]);
              },
              save_column);
  for (int64_t t = last - 1; t >= 0; --t) {
    a_before = scalings + t * step;
    b = a_before + cols;
    dual = duals + t * step;
    if constexpr (LOG) {
      sum_rows<T>(rows, cols, [&](int x, int y) { return v[y] * p(x, y, a); }, save_row);
      sum_columns(rows, cols, groups, block.partial, [&](int x, int y) { return w[x] * p(x, y, a_before); },
                  save_column);
      a = a_before;
    } else {
      a = a_before;
      multiply_rows<N>(block.k, rows, v, save_row);
      multiply_columns<N>(block.k, rows, groups, block.partial, w, save_column);
    }
  }
}

template <int N, bool LOG, typename T>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const Batch<T> batch, const T* grad, const T* scalings, Gradient<T> out, T* duals, bool unrolled) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int64_t n = blockIdx.x;
  const auto& sizes = batch.sizes;
  const Block<T> block(batch, n, shared);
  scalings += n * sizes.saved * sizes.duals();
  if constexpr (!LOG) block.fill();
  T* mine = duals == nullptr ? block.duals : duals + n * sizes.iters * sizes.duals();
  if (unrolled) unroll<N, LOG>(block, batch, grad[n], scalings, mine);
  out.grad = grad[n];
  out.scalings = scalings;
  out.duals = unrolled ? mine : nullptr;
  out.cost += n * sizes.rows * sizes.cols;
  out.column_parts = block.partial;
  if (out.norm_x != nullptr) {
    out.norm_x += n * sizes.rows;
    out.norm_y += n * sizes.cols;
    out.row_parts += n * sizes.rows * ((sizes.cols + kTile - 1) / kTile);
  }
  write_gradient<LOG>(block.cost, out, [&](int x, int y) { return block.k.row(x)[y]; });
  if (out.norm_x != nullptr) write_norm_gradients(block.cost, out);
}

// Fits what a block needs into its shared memory: first the vectors, then as many rows of K as there is room for.
template <typename T>
Layout make_layout(const SinkhornSizes& sizes, bool log_domain, int pack, bool wants_duals, int limit) {
  const int64_t rows = sizes.rows, cols = sizes.cols;
  Layout layout{};
  layout.groups = std::clamp<int64_t>(kThreads / std::max<int64_t>(cols / pack, 1), 1, rows);
  const int64_t blocks = (cols + kTile - 1) / kTile;
  layout.gradient_groups = std::clamp<int64_t>(kWarps / blocks, 1, (rows + kRows - 1) / kRows);
  layout.partial = cols * std::max(layout.groups * (log_domain ? 2 : 1), layout.gradient_groups);
  const int64_t duals = wants_duals ? sizes.iters * sizes.duals() : 0;
  layout.duals = duals * int64_t{sizeof(T)} <= kSharedDuals ? duals : 0;
  const int64_t fixed = layout.partial + cols + rows + kWarps + layout.duals;
  const int64_t room = limit / int64_t{sizeof(T)} - fixed;
  TORCH_CHECK_VALUE(room >= 0, "sinkhorn: cost has C1 = ", rows, " and C2 = ", cols,
                    "; on CUDA the vectors of a problem must fit into ", limit, " bytes of shared memory.");
  layout.near_rows = log_domain ? 0 : std::min(rows, room / cols);
  layout.bytes = (fixed + layout.near_rows * cols) * sizeof(T);
  return layout;
}

int shared_limit(const Tensor& tensor) {
  int bytes = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, tensor.get_device()));
  return bytes;
}

template <typename Kernel, typename... Args>
void launch(Kernel* kernel, const SinkhornSizes& sizes, const Layout& layout, Args... args) {
  TORCH_CHECK_VALUE(sizes.problems <= std::numeric_limits<int>::max(), "sinkhorn: cost holds ", sizes.problems,
                    " problems; on CUDA at most ", std::numeric_limits<int>::max(), " fit one launch.");
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, layout.bytes));
  kernel<<<sizes.problems, kThreads, layout.bytes, c10::cuda::getCurrentCUDAStream()>>>(args...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Elements of a 16-byte load of floats, where every row and vector starts on 16 bytes. Double and the log domain, which
// has no K, load one by one.
template <typename T>
constexpr int kPack = std::is_same_v<T, float> ? 4 : 1;

template <typename T>
int pack_size(const SinkhornSizes& sizes, bool log_domain) {
  return !log_domain && sizes.rows % kPack<T> == 0 && sizes.cols % kPack<T> == 0 ? kPack<T> : 1;
}

template <typename T>
Batch<T> make_batch(const Tensor& cost, const std::optional<Tensor>& norm_x, const std::optional<Tensor>& norm_y,
                    const SinkhornSizes& sizes, double eps, const Layout& layout, T* far, int64_t far_stride) {
  return {cost.const_data_ptr<T>(), pointer<T>(norm_x), pointer<T>(norm_y), sizes, static_cast<T>(eps),
          layout,                   far,                far_stride};
}

std::tuple<Tensor, Tensor, Tensor> sinkhorn_cuda_forward(const Tensor& cost_, const std::optional<Tensor>& norm_x_,
                                                         const std::optional<Tensor>& norm_y_, double eps,
                                                         int64_t iters, bool log_domain, bool unroll, bool with_plan) {
  const auto sizes = check_sinkhorn(cost_, norm_x_, norm_y_, eps, iters, unroll);
  const c10::cuda::CUDAGuard guard(cost_.device());
  const Tensor cost = cost_.contiguous();
  const auto norm_x = contiguous(norm_x_), norm_y = contiguous(norm_y_);
  const Tensor loss = at::empty(cost.sizes().slice(0, cost.dim() - 2), cost.options());
  const Tensor plan = with_plan ? at::empty(cost.sizes(), cost.options()) : at::empty({0}, cost.options());
  const Tensor scalings = at::empty(scalings_shape(cost, sizes), cost.options());
  if (sizes.problems == 0) return {loss, plan, scalings};
  AT_DISPATCH_FLOATING_TYPES(cost.scalar_type(), "sinkhorn", [&] {
    const int pack = pack_size<scalar_t>(sizes, log_domain);
    const auto layout = make_layout<scalar_t>(sizes, log_domain, pack, false, shared_limit(cost));
    const int64_t near = layout.near_rows * sizes.cols, far = sizes.rows * sizes.cols - near;
    // rows of K beyond shared memory: in the plan where one is wanted (each element is read before it is overwritten)
    const Tensor scratch = at::empty({with_plan || log_domain ? 0 : sizes.problems * far}, cost.options());
    scalar_t* to_plan = with_plan ? plan.data_ptr<scalar_t>() : nullptr;
    const auto batch = make_batch<scalar_t>(cost, norm_x, norm_y, sizes, eps, layout,
                                            with_plan ? to_plan + near : scratch.data_ptr<scalar_t>(),
                                            with_plan ? sizes.rows * sizes.cols : far);
    const auto kernel = log_domain  ? forward_kernel<1, true, scalar_t>
                        : pack == 1 ? forward_kernel<1, false, scalar_t>
                                    : forward_kernel<kPack<scalar_t>, false, scalar_t>;
    launch(kernel, sizes, layout, batch, loss.data_ptr<scalar_t>(), to_plan, scalings.data_ptr<scalar_t>());
  });
  if (checks_cuda_values()) explain_nan(loss, cost, eps, log_domain, norm_x.has_value());
  return {loss, plan, scalings};
}

std::tuple<Tensor, Tensor, Tensor> sinkhorn_cuda_backward(const Tensor& grad_, const Tensor& cost_,
                                                          const std::optional<Tensor>& norm_x_,
                                                          const std::optional<Tensor>& norm_y_,
                                                          const Tensor& scalings_, double eps, bool log_domain,
                                                          bool unroll) {
  const auto sizes = check_sinkhorn_backward(grad_, cost_, norm_x_, norm_y_, scalings_, eps, unroll);
  const c10::cuda::CUDAGuard guard(cost_.device());
  const Tensor cost = cost_.contiguous(), grad = grad_.contiguous(), scalings = scalings_.contiguous();
  const auto norm_x = contiguous(norm_x_), norm_y = contiguous(norm_y_);
  const Tensor grad_cost = at::empty(cost.sizes(), cost.options());
  const Tensor grad_x = at::empty(norm_x ? norm_x->sizes() : at::IntArrayRef{0}, cost.options());
  const Tensor grad_y = at::empty(norm_y ? norm_y->sizes() : at::IntArrayRef{0}, cost.options());
  if (sizes.problems == 0) return {grad_cost, grad_x, grad_y};
  AT_DISPATCH_FLOATING_TYPES(cost.scalar_type(), "sinkhorn_backward", [&] {
    const int pack = pack_size<scalar_t>(sizes, log_domain);
    const auto layout = make_layout<scalar_t>(sizes, log_domain, pack, unroll, shared_limit(cost));
    const bool far_duals = unroll && layout.duals == 0;
    const Tensor duals = at::empty({far_duals ? sizes.problems * sizes.iters * sizes.duals() : 0}, cost.options());
    const int64_t blocks = (sizes.cols + kTile - 1) / kTile;
    const Tensor row_parts = at::empty({norm_x ? sizes.problems * sizes.rows * blocks : 0}, cost.options());
    scalar_t* to = grad_cost.data_ptr<scalar_t>();  // holds the rows of K beyond shared memory until the last pass
    const auto batch = make_batch<scalar_t>(cost, norm_x, norm_y, sizes, eps, layout,
                                            to + layout.near_rows * sizes.cols, sizes.rows * sizes.cols);
    Gradient<scalar_t> out{};
    out.iters = static_cast<int>(sizes.iters);
    out.saved = static_cast<int>(sizes.saved);
    out.groups = static_cast<int>(layout.gradient_groups);
    out.cost = to;
    if (norm_x) {
      out.norm_x = grad_x.data_ptr<scalar_t>();
      out.norm_y = grad_y.data_ptr<scalar_t>();
      out.row_parts = row_parts.data_ptr<scalar_t>();
    }
    const auto kernel = log_domain  ? backward_kernel<1, true, scalar_t>
                        : pack == 1 ? backward_kernel<1, false, scalar_t>
                                    : backward_kernel<kPack<scalar_t>, false, scalar_t>;
    launch(kernel, sizes, layout, batch, grad.const_data_ptr<scalar_t>(), scalings.const_data_ptr<scalar_t>(), out,
           far_duals ? duals.data_ptr<scalar_t>() : nullptr, unroll);
  });
  return {grad_cost, grad_x, grad_y};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2ops, CUDA, m) {
  m.impl("sinkhorn", sinkhorn_cuda_forward);
  m.impl("sinkhorn_backward", sinkhorn_cuda_backward);
}

}  // namespace d2ops
