"""A folder for PYTHONPATH, by which Python subprocesses come up patched.

It must never hold any module but sitecustomize: its folder is on the path of programs.
"""
