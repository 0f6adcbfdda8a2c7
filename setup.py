import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

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


class BuildWithConfigScope(build_py):
    """As setuptools', with the file that makes `swinv2_mm::` known to mmengine: see swinv2_mm/config_scope.py.

    It is a copy beside the package, because an import of the package here would decide too early where it comes from.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file('swinv2_mm/config_scope.py', f'{self.build_lib}/_swinv2_mm_config_scope.py')
            Path(self.build_lib, 'swinv2_mm.pth').write_text('import _swinv2_mm_config_scope as _; _.install()\n')


setup(
    cmdclass={'build_ext': BuildForEach, 'build_py': BuildWithConfigScope},
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
