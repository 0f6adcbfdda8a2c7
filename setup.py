import platform
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# What a CPU computes in C++: compiled for each instruction set, of which the running processor's widest is chosen.
# Without it (no compiler, another processor) torch's operations compute the same: a failing build is a warning.
X86 = {
    'avx512': ['-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mavx2', '-mfma', '-mf16c'],
    'avx2': ['-mavx2', '-mfma', '-mf16c'],
}
INSTRUCTION_SETS = {'x86_64': X86, 'aarch64': {'neon': []}}
# Not linked to an OpenMP of its own: torch's is there when it is loaded, and the threads of two would fight for the
# cores.
SOURCES = 'swinv2_mm/models/kernels/csrc'
FLAGS = [
    '-std=c++17',
    '-O3',
    '-g0',
    '-fopenmp',
    '-ffp-contract=fast',
    '-Wno-psabi',
    '-Wno-uninitialized',
    '-Wno-maybe-uninitialized',
]


class BuildForEach(build_ext):
    """As setuptools', with a folder of objects for each extension: they share their source."""

    def build_extension(self, ext: Extension) -> None:
        shared, self.build_temp = self.build_temp, f'{self.build_temp}/{ext.name}'
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = shared


setup(
    cmdclass={'build_ext': BuildForEach},
    ext_modules=[
        Extension(
            f'swinv2_mm._kernels_{name}',
            [f'{SOURCES}/window_attention.cpp', f'{SOURCES}/token_passes.cpp'],
            depends=[f'{SOURCES}/vectors.h'],
            extra_compile_args=FLAGS + flags,
            language='c++',
            optional=True,
        )
        for name, flags in (INSTRUCTION_SETS.get(platform.machine(), {}) if sys.platform == 'linux' else {}).items()
    ],
)
