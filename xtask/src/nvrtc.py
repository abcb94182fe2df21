"""Compiles one source to PTX with NVRTC: nvrtc.py LIBRARY SOURCE TARGET OUT. A library is called here, and not in
xtask, because that takes `unsafe`."""

import ctypes
import os
import sys


def main(library, source, target, out):
    nvrtc = ctypes.CDLL(library)
    with open(source, "rb") as file:
        text = file.read()
    program = ctypes.c_void_p()
    # The name alone: a path would stand in the text.
    name = os.path.basename(source).encode()
    check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None))
    folder = os.path.dirname(os.path.abspath(source)).encode()
    options = [b"--gpu-architecture=" + target.encode(), b"--std=c++17", b"--fmad=false", b"-I" + folder]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = take(nvrtc, program, "ProgramLog").strip()
    if log:
        print(log, file=sys.stderr)
    check(nvrtc, status)
    with open(out, "w", encoding="utf-8", newline="\n") as file:
        file.write(take(nvrtc, program, "PTX"))


def check(nvrtc, status):
    if status:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        sys.exit(nvrtc.nvrtcGetErrorString(status).decode())


def take(nvrtc, program, what):
    size = ctypes.c_size_t()
    check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, text))
    return text.value.decode()


if __name__ == "__main__":
    main(*sys.argv[1:])
