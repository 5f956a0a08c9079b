"""CPython's multiprocessing tests with the start method "fork".

Named here since a distribution may lack CPython's own module of that name, and since Python
3.12 has split it.
"""

from test import _test_multiprocessing

_test_multiprocessing.install_tests_in_module_dict(globals(), "fork")
