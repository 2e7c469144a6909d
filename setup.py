"""The whole build: the packages, the kernels/ and bench/ mappings, one pybind11 extension."""

from glob import glob
from shutil import rmtree

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup
from setuptools.command.build import build


class FreshBuild(build):
    """Without this a file deleted since the last `pip install .` is shipped again out of build/."""

    def run(self):
        rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    packages=[*find_packages(include=["saekern", "saekern.*"]), "saekern.kernels", "saekern.bench"],
    package_dir={"saekern.kernels": "kernels", "saekern.bench": "bench"},
    package_data={
        "saekern": ["py.typed", "_C.pyi"],
        "saekern.activations": ["tiny/*"],
        "saekern.bench": ["README.md"],
        "saekern.report": ["*.css", "*.js"],
    },
    ext_modules=[
        Pybind11Extension(
            "saekern._C",
            sorted(glob("csrc/*.cpp") + glob("csrc/*/*.cpp")),
            depends=sorted(glob("csrc/*.h") + glob("csrc/*/*.h")),  # also what puts the headers in the sdist
            include_dirs=["csrc"],
            cxx_std=17,
            # -fno-math-errno lets loops around sqrt vectorise. No -ffast-math: it would reorder sums and drop NaN.
            extra_compile_args=["-O3", "-Wall", "-Wextra", "-Wshadow", "-fno-math-errno", "-pthread"],
            extra_link_args=["-pthread"],
        )
    ],
    cmdclass={"build": FreshBuild, "build_ext": build_ext},
)
