import platform

from setuptools import Extension, setup

# Attention on a CPU with AVX-512. Without it (no compiler, another processor) torch's operations compute the same: a
# failing build is a warning. Not linked to an OpenMP of its own: torch's is there when it is loaded, and the threads of
# two would fight for the cores.
NATIVE = Extension(
    'swinv2_mm._window_attention',
    ['swinv2_mm/csrc/window_attention.cpp'],
    extra_compile_args=['-std=c++17', '-O3', '-g0', '-fopenmp', '-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl',
                        '-mfma', '-mf16c'],
    language='c++',
    optional=True,
)

setup(ext_modules=[NATIVE] if platform.machine() in ('x86_64', 'AMD64') and platform.system() == 'Linux' else [])
