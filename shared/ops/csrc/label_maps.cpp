// render_label_maps: the pyramids of a plane's objects, each over its own pixels. Schema, checks, CPU kernel.
#include "label_maps.h"

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>

namespace d2ops {

LabelObjects check_label_maps(const Tensor& boxes, const Tensor& slots, const Tensor& intensities, at::TensorList masks,
                              int64_t planes, int64_t height, int64_t width, at::ScalarType dtype) {
  constexpr const char* op = "render_label_maps";
  TORCH_CHECK_VALUE(boxes.dim() == 2 && boxes.size(1) == 4, op, ": boxes has shape ", boxes.sizes(),
                    "; expected (T, 4), xyxy.");
  const int64_t count = boxes.size(0);
  TORCH_CHECK_VALUE(slots.dim() == 1 && slots.size(0) == count, op, ": slots has shape ", slots.sizes(), "; expected (",
                    count, ",), one for each of the boxes.");
  TORCH_CHECK_VALUE(intensities.dim() == 1 && intensities.size(0) == count, op, ": intensities has shape ",
                    intensities.sizes(), "; expected (", count, ",), one for each of the boxes.");
  TORCH_CHECK_VALUE(planes >= 0 && height >= 0 && width >= 0, op, ": size is ", planes, " planes of (", height, ", ",
                    width, "); expected none below 0.");
  TORCH_CHECK_TYPE(at::isFloatingType(dtype), op, ": dtype is ", dtype,
                   "; expected float32, float64, float16 or bfloat16.");
  const auto compute = dtype == at::kDouble ? at::kDouble : at::kFloat;
  check_same_device(op, {{"boxes", &boxes}, {"slots", &slots}, {"intensities", &intensities}});
  TORCH_CHECK_TYPE(slots.scalar_type() == at::kLong, op, ": slots has dtype ", slots.scalar_type(),
                   "; expected int64.");
  TORCH_CHECK_TYPE(boxes.scalar_type() == compute, op, ": boxes has dtype ", boxes.scalar_type(), "; expected ",
                   compute, " for maps of ", dtype, ".");
  check_same_dtype(op, {{"boxes", &boxes}, {"intensities", &intensities}});
  TORCH_CHECK_VALUE(masks.empty() || int64_t(masks.size()) == count, op, ": masks has ", masks.size(),
                    " tensors; expected ", count, ", one for each of the boxes, or none at all.");
  LabelObjects objects{boxes.contiguous(), slots.contiguous(), intensities.contiguous(), {}};
  for (const Tensor& mask : masks) {
    check_same_device(op, {{"boxes", &boxes}, {"masks", &mask}});
    TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, op, ": masks has dtype ", mask.scalar_type(), "; expected bool.");
    TORCH_CHECK_VALUE(mask.dim() == 2 && mask.size(0) == height && mask.size(1) == width, op,
                      ": masks has a mask of shape ", mask.sizes(), "; expected (", height, ", ", width, ").");
    objects.masks.push_back(mask.contiguous());
  }
  return objects;
}

namespace {

constexpr int64_t kStrip = 16;      // rows a task writes: 86 kB at 1344 columns, so that overlaps stay in cache
constexpr int64_t kGrain = 131072;  // pixels worth a thread

// Pixels of one axis that a box reaches: [first, last).
struct Range {
  int64_t first, last;
};

// The first index in [0, size) that is not `before`.
template <typename F>
int64_t partition_point(int64_t size, const F& before) {
  int64_t low = 0, high = size;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    before(middle) ? low = middle + 1 : high = middle;
  }
  return low;
}

template <typename acc_t>
Range reach(const Extent<acc_t>& extent, int64_t size, acc_t offset) {
  if (!(extent.length > 0)) {
    return {0, 0};
  }
  return {partition_point(size, [&](int64_t i) { return extent.at(i, offset) < acc_t(-0.5); }),
          partition_point(size, [&](int64_t i) { return extent.at(i, offset) <= acc_t(0.5); })};
}

template <typename acc_t>
struct Object {
  Extent<acc_t> x, y;
  Range columns, rows;
  acc_t factor;
  const bool* mask;  // or null
};

// The objects of each plane that reach a pixel.
template <typename acc_t>
std::vector<std::vector<Object<acc_t>>> sort_objects(const LabelObjects& all, int64_t planes, int64_t height,
                                                     int64_t width, acc_t offset) {
  std::vector<std::vector<Object<acc_t>>> result(planes);
  const acc_t* box = all.boxes.const_data_ptr<acc_t>();
  const acc_t* intensities = all.intensities.const_data_ptr<acc_t>();
  const int64_t* slots = all.slots.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < all.slots.size(0); i++, box += 4) {
    TORCH_CHECK_VALUE(slots[i] >= 0 && slots[i] < planes, "render_label_maps: slots holds ", slots[i],
                      "; expected 0 to ", planes - 1, ".");
    const Extent<acc_t> x(box[0], box[2]), y(box[1], box[3]);
    const Range columns = reach(x, width, offset), rows = reach(y, height, offset);
    if (columns.first < columns.last && rows.first < rows.last) {
      const bool* mask = all.masks.empty() ? nullptr : all.masks[i].template const_data_ptr<bool>();
      result[slots[i]].push_back({x, y, columns, rows, intensities[i], mask});
    }
  }
  return result;
}

// out = max(out, factor * (1 - max(|x|, |y|))) over the object's rows in [first, first + rows), `out` being those rows.
// `profile` has room for |x| of a row.
template <typename acc_t>
void draw(const Object<acc_t>& object, int64_t first, int64_t rows, int64_t width, acc_t offset, acc_t* profile,
          acc_t* out) {
  using Vec = at::vec::Vectorized<acc_t>;
  const int64_t left = object.columns.first, count = object.columns.last - left;
  const int64_t top = std::max(first, object.rows.first), bottom = std::min(first + rows, object.rows.last);
  for (int64_t i = 0; top < bottom && i < count; i++) {
    profile[i] = std::abs(object.x.at(left + i, offset));
  }
  for (int64_t row = top; row < bottom; row++) {
    const acc_t distance = std::abs(object.y.at(row, offset));
    acc_t* line = out + (row - first) * width + left;
    if (object.mask == nullptr) {
      const Vec one(1), factor(object.factor), across(distance);
      at::vec::map2<acc_t>(
          [&](Vec old, Vec along) { return at::vec::maximum(old, factor * (one - at::vec::maximum(along, across))); },
          line, line, profile, count);
    } else {
      const bool* mask = object.mask + row * width + left;
      for (int64_t i = 0; i < count; i++) {
        const acc_t value = object.factor * (1 - std::max(profile[i], distance));
        line[i] = mask[i] ? std::max(line[i], value) : line[i];
      }
    }
  }
}

template <typename scalar_t>
void render_kernel(const LabelObjects& all, int64_t planes, int64_t height, int64_t width, double offset_in,
                   scalar_t* maps) {
  using acc_t = at::opmath_type<scalar_t>;
  constexpr bool direct = std::is_same_v<scalar_t, acc_t>;
  const acc_t offset = acc_t(offset_in);
  const auto objects = sort_objects(all, planes, height, width, offset);
  const int64_t strips = (height + kStrip - 1) / kStrip;
  const int64_t grain = std::max<int64_t>(1, kGrain / (kStrip * width));
  at::parallel_for(0, planes * strips, grain, [&](int64_t begin, int64_t end) {
    std::vector<acc_t> profile(width), buffer(direct ? 0 : kStrip * width);
    for (int64_t task = begin; task < end; task++) {
      const auto& here = objects[task / strips];
      const int64_t first = task % strips * kStrip, rows = std::min(kStrip, height - first);
      scalar_t* out = maps + (task / strips * height + first) * width;
      const bool empty = std::none_of(here.begin(), here.end(), [&](const Object<acc_t>& object) {
        return object.rows.first < first + rows && object.rows.last > first;
      });
      if (direct || empty) {
        std::fill(out, out + rows * width, scalar_t(0));
      }
      if (empty) {
        continue;
      }
      acc_t* canvas = buffer.data();
      if constexpr (direct) {
        canvas = out;
      } else {
        std::fill(buffer.begin(), buffer.end(), acc_t(0));
      }
      for (const auto& object : here) {
        draw(object, first, rows, width, offset, profile.data(), canvas);
      }
      if constexpr (!direct) {
        at::vec::convert(canvas, out, rows * width);
      }
    }
  });
}

Tensor render_label_maps_cpu(const Tensor& boxes, const Tensor& slots, const Tensor& intensities, at::TensorList masks,
                             int64_t planes, int64_t height, int64_t width, double offset, at::ScalarType dtype) {
  const LabelObjects objects = check_label_maps(boxes, slots, intensities, masks, planes, height, width, dtype);
  raise_if_not_finite("render_label_maps", {{"boxes", &objects.boxes}, {"intensities", &objects.intensities}});
  Tensor maps = at::empty({planes, height, width}, boxes.options().dtype(dtype));
  if (maps.numel() > 0) {
    D2OPS_DISPATCH(dtype, "render_label_maps", [&] {
      render_kernel<scalar_t>(objects, planes, height, width, offset, maps.mutable_data_ptr<scalar_t>());
    });
  }
  return maps;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2ops, m) {
  m.def("render_label_maps(Tensor boxes, Tensor slots, Tensor intensities, Tensor[] masks, SymInt planes,"
        " SymInt height, SymInt width, float offset, ScalarType dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(d2ops, CPU, m) { m.impl("render_label_maps", render_label_maps_cpu); }

}  // namespace d2ops
