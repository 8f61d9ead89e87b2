"""Builds the native ops, `shared/ops/_C`: the C++ kernels always, the CUDA kernels where nvcc is found (no GPU needed).

    python setup.py build_ext --inplace        (what `make setup` runs)

Environment: TORCH_CUDA_ARCH_LIST (default below), SHARED_OPS_CPU=DEFAULT|AVX2|AVX512 (default: this machine's best),
SHARED_OPS_CUDA=0 (leave the CUDA kernels out), SHARED_OPS_BUILD=0 (build nothing), MAX_JOBS.
`shared/ops/build.json`, written beside the library, says what it was built from and for.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
OPS = ROOT / "shared" / "ops"
CUDA_ARCHITECTURES = "8.0;9.0+PTX"  # Ampere (and 8.6, 8.9, which run its code), Hopper, and later through PTX
CPU_FLAGS = {
    "DEFAULT": [],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c"],
}


def find_cuda_home(nvcc: str | None) -> str | None:
    """The toolkit folder behind `nvcc`, which may be a script that starts the real one elsewhere."""
    if nvcc is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cu") as empty:
        command = [nvcc, "--dryrun", "-c", empty.name, "-o", os.devnull]
        output = subprocess.run(command, capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", output, re.MULTILINE)
    return str(Path(top.group(1)).resolve()) if top else None


def cuda_include_dirs() -> list[str]:
    """Headers that a toolkit without its libraries lacks, from the packages that torch itself depends on."""
    return [str(p) for p in Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*/include")]


def use_own_ninja() -> None:
    """Puts this environment's programs first on PATH, activated or not: without a `ninja`, or with another version of
    it than the last build's, torch compiles everything again."""
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def native_extension():
    """The torch extension of the ops, and what to write into build.json."""
    use_own_ninja()
    import torch

    if os.environ.get("CUDA_HOME") is None and torch.version.cuda and os.environ.get("SHARED_OPS_CUDA") != "0":
        home = find_cuda_home(shutil.which("nvcc"))
        if home:
            os.environ["CUDA_HOME"] = home
    from torch.utils import cpp_extension

    with_cuda = bool(torch.version.cuda and cpp_extension.CUDA_HOME and os.environ.get("SHARED_OPS_CUDA") != "0")
    if with_cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    capability = os.environ.get("SHARED_OPS_CPU") or torch.backends.cpu.get_cpu_capability()
    if capability not in CPU_FLAGS:
        capability = "DEFAULT"
    define = [f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
    cxx = ["-O3", "-fopenmp", "-fno-math-errno", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]
    sources = sorted(OPS.glob("csrc/*.cpp")) + (sorted(OPS.glob("csrc/*.cu")) if with_cuda else [])
    extension = (cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension)(
        "shared.ops._C",
        [str(p.relative_to(ROOT)) for p in sources],
        include_dirs=[str(OPS / "csrc")] + (cuda_include_dirs() if with_cuda else []),
        extra_compile_args={
            "cxx": cxx + define + CPU_FLAGS[capability],
            "nvcc": ["-O3", "-lineinfo", "--expt-relaxed-constexpr", "--extended-lambda"],
        },
        extra_link_args=["-fopenmp"],
        py_limited_api=True,
    )
    info = {
        "sources": runpy.run_path(str(OPS / "sources.py"))["hash_sources"](),
        "torch": torch.__version__,
        "cpu": capability,
        "cuda": torch.version.cuda if with_cuda else None,
        "architectures": os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else None,
    }
    return extension, info


def build_command(info: dict):
    """torch's build_ext, which also writes build.json."""
    from torch.utils import cpp_extension

    class BuildOps(cpp_extension.BuildExtension):
        def run(self):
            super().run()
            target = OPS if self.inplace else Path(self.build_lib) / "shared" / "ops"
            (target / "build.json").write_text(json.dumps(info, indent=1) + "\n")
            print(f"shared.ops: built for {info['cpu']}, CUDA {info['cuda']} ({info['architectures']})")

    return BuildOps.with_options(no_python_abi_suffix=True)


def main():
    if os.environ.get("SHARED_OPS_BUILD") == "0" or "egg_info" in sys.argv or "sdist" in sys.argv:
        return setup()
    try:
        extension, info = native_extension()
    except ImportError as error:
        raise SystemExit(
            f"The native ops are built against torch, which cannot be imported ({error}): install torch first and use"
            " `pip install --no-build-isolation .`, or set SHARED_OPS_BUILD=0 to install without them."
        ) from error
    return setup(ext_modules=[extension], cmdclass={"build_ext": build_command(info)})


if __name__ == "__main__":
    main()
