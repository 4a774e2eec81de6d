"""How the tests' programs are compiled: without optimisation.

Most of the tests' time is compilation, of programs that run for a few steps; so compiled, they take a third of it.
XLA_FLAGS=--xla_backend_optimization_level=3 has the last word.
"""

import importlib.metadata

UNOPTIMIZED = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    UNOPTIMIZED += " --xla_cpu_use_fusion_emitters=false"
