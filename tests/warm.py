"""A command of the tests without its first second, which is `import torch`: a server has imported it, and
forks a process for each command. All else is as in a shell: arguments, folder, environment, what it
says, how it ends."""
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
    sys.path[0] = os.path.dirname(command[0])
    runpy.run_path(command[0], run_name="__main__")
