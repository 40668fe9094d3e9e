"""A command of the tests without its first second, which is `import torch`: a server has imported it, and
forks a process for each command. Arguments, folder, what it says and how it ends are as in a shell.
Not so: all forks order their sets alike (so `helpers.finish` makes the run without a kill in a process
of its own), and what is read from the environment when torch is imported is read once."""
import multiprocessing
import os
import runpy
import sys

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "tokenizers", "safetensors.torch", "tqdm"])


def start(command, folder, env, out, error):
    """`python command`, with what it prints in two files."""
    process = SERVER.Process(target=begin, args=(command, str(folder), dict(env), out, error))
    process.start()
    return process


def begin(command, folder, env, out, error):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, path in ((1, out), (2, error)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    sys.argv = [*command]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path = [os.path.dirname(command[0]), *(     # no room of the project, unless a script adds it
        path for path in sys.path if "site-packages" in path or not os.path.abspath(path).startswith(root))]
    runpy.run_path(command[0], run_name="__main__")
