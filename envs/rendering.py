"""Drawing a MuJoCo model without a screen: which OpenGL backend, how well, and how fast.

On software OpenGL nearly all of the time of a 64x64 image goes into the 4096x4096 shadow map and the
fourfold multisampling, which the policy hardly sees. Quality "paper" keeps both, as in the iVideoGPT
experiments; "fast" leaves out shadows, reflections and multisampling, and is about ten times faster.
"""

import atexit
import contextlib
import ctypes
import importlib.util
import os
import sys
import weakref
from typing import Any

import numpy as np

from .errors import InvalidSetting, MissingGL, nearest

QUALITIES = ("fast", "paper")

_INSTALL_HINT = "install one with: apt-get install libegl1 libgl1-mesa-dri libopengl0 (or libosmesa6)"
_EGL_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT of the extension EGL_EXT_platform_device
_MAX_DEVICES = 16
_MAX_GEOMS = 5000  # more than any model of Meta-world or the DM Control suite draws


def choose_backend() -> str:
    """Chooses the OpenGL backend and tells MuJoCo through `MUJOCO_GL`; call it before mujoco is imported.

    A value of `MUJOCO_GL` that the user has set wins. Otherwise, on Linux, EGL is tried (a GPU, or Mesa in
    software), then OSMesa. Elsewhere MuJoCo's own default is left alone. Only loads libraries: milliseconds.

    Returns:
        "egl", "osmesa", "glfw", or "default" on other systems than Linux.

    Raises:
        MissingGL: nothing can draw here; the line names the command that changes that.
    """
    _load_triton_first()
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wanted in ("disable", "disabled", "off", "false", "0"):
        raise MissingGL(f"MUJOCO_GL={wanted} turns drawing off, but images are needed; unset it")
    if not sys.platform.startswith("linux"):
        return "default"
    if wanted in ("glfw", "glx", "enable", "enabled", "on", "true", "1"):
        return "glfw"
    if wanted:
        if wanted not in _PROBES:
            raise MissingGL(f"MUJOCO_GL={wanted} is no backend{nearest(wanted, _PROBES)}; use egl, osmesa or glfw")
        if not _PROBES[wanted]():
            raise MissingGL(f"MUJOCO_GL={wanted} is set, but that library does not load; {_INSTALL_HINT}, or unset it")
        return wanted
    for backend, works in _PROBES.items():
        if works():
            os.environ["MUJOCO_GL"] = backend
            return backend
    raise MissingGL(f"no OpenGL library for drawing without a screen; {_INSTALL_HINT}")


def _load_triton_first() -> None:
    """Load the library of triton, which CUDA builds of torch bring, before an OpenGL driver.

    Both triton and Mesa's software driver carry LLVM. Seen with triton 3.7.1 and Mesa 22.3: the process dies where
    torch imports triton after the first image was drawn; the other way round both work. It takes 30 ms.
    """
    found = importlib.util.find_spec("triton")
    for folder in found.submodule_search_locations or () if found else ():
        with contextlib.suppress(OSError):
            ctypes.CDLL(os.path.join(folder, "_C", "libtriton.so"))


def _first(*names: str) -> ctypes.CDLL | None:
    """The first of these libraries that loads."""
    for name in names:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None


def _egl_works() -> bool:
    """Whether EGL can initialise a display on some device, asked in the same way as MuJoCo asks.

    PyOpenGL wants a library of OpenGL's own functions beside it, which libegl1 alone does not bring.

    Through ctypes, not PyOpenGL: that binds the whole process to one platform at its import, so that OSMesa
    could no longer be tried after EGL.
    """
    egl = _first("libEGL.so.1")
    if egl is None or _first("libOpenGL.so.0", "libGL.so.1", "libOpenGL.so", "libGL.so") is None:
        return False
    get_proc = egl.eglGetProcAddress
    get_proc.restype, get_proc.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    query_devices = get_proc(b"eglQueryDevicesEXT")
    get_display = get_proc(b"eglGetPlatformDisplayEXT")
    if not query_devices or not get_display:
        return False
    devices = (ctypes.c_void_p * _MAX_DEVICES)()
    count = ctypes.c_int(0)
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query_devices)
    display_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(get_display)
    egl.eglInitialize.restype, egl.eglInitialize.argtypes = ctypes.c_uint, [ctypes.c_void_p] * 3
    if not query(_MAX_DEVICES, devices, ctypes.byref(count)):
        return False
    displays = (display_of(_EGL_PLATFORM_DEVICE, device, None) for device in devices[: count.value])
    return any(display and egl.eglInitialize(display, None, None) for display in displays)


def _osmesa_works() -> bool:
    """Whether an OSMesa library loads, under any of the names that distributions give it."""
    return hasattr(_first("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"), "OSMesaCreateContextExt")


_PROBES = {"egl": _egl_works, "osmesa": _osmesa_works}  # in the order of preference


def camera_id(model: Any, camera: str | int) -> int:
    """The number of a camera of `model`, given by its name or its number.

    Raises:
        InvalidSetting: the model has no such camera; the line lists those that it has.
    """
    names = [model.camera(i).name for i in range(model.ncam)]
    if isinstance(camera, str) and camera in names:
        return names.index(camera)
    if str(camera).isdecimal() and int(camera) < model.ncam:
        return int(camera)
    known = ", ".join(name or str(i) for i, name in enumerate(names))
    raise InvalidSetting(f"unknown camera {camera!r}{nearest(str(camera), names)} (this task has: {known})")


_open_renderers: weakref.WeakSet["Renderer"] = weakref.WeakSet()


def _close_all() -> None:
    for renderer in list(_open_renderers):
        renderer.close()


class Renderer:
    """Draws one camera of one MuJoCo model as square images.

    It owns an OpenGL context, so `close` it (at the exit of Python those still open are closed). Several
    can live in one process: each makes its own context current before it draws. Row 0 of an image is the
    top row of the camera's view.

    Args:
        model: a `mujoco.MjModel`. Its visual settings (buffer size, multisampling, shadow map) are changed.
        camera: the number of a camera of the model.
        size: height and width in pixels.
        quality: "fast" or "paper".

    Raises:
        MissingGL: the backend loads but cannot make a context.
        InvalidSetting: the quality is unknown.
    """

    def __init__(self, model: Any, camera: int, size: int, quality: str) -> None:
        self._gl: Any = None
        self._context: Any = None  # what `close` looks at, even if no more than this gets done
        if quality not in QUALITIES:
            raise InvalidSetting(f"unknown render_quality {quality!r}{nearest(quality, QUALITIES)} (fast or paper)")
        backend = choose_backend()
        import mujoco

        self._mujoco = mujoco
        self._model = model
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        if quality == "fast":
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
            # Mesa's software driver reads this with the first context of the process: its threads cost a small image
            # more than they bring. Shadow maps are large, so a process that draws in quality "paper" alone keeps them.
            os.environ.setdefault("LP_NUM_THREADS", "0")
        try:
            # Not mujoco.GLContext: that was fixed when mujoco was first imported, perhaps by someone else.
            module = "mujoco.gl_context" if backend == "default" else f"mujoco.{backend}"
            self._gl = importlib.import_module(module).GLContext(size, size)
            self._gl.make_current()
        except (ImportError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise MissingGL(f"OpenGL backend {backend!r} cannot draw here ({reason}); {_INSTALL_HINT}") from error
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        # Exit handlers run last in, first out. MuJoCo and dm_control register theirs, which shut EGL down, with a first
        # context or at an import; ours has to come after all of them.
        atexit.unregister(_close_all)
        atexit.register(_close_all)
        _open_renderers.add(self)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        if quality == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = camera
        self._viewport = mujoco.MjrRect(0, 0, size, size)
        self._pixels = np.empty((size, size, 3), np.uint8)  # (H, W, C), bottom row first, as OpenGL has it

    def render(self, data: Any) -> np.ndarray:
        """Draws the state `data` (a `mujoco.MjData` of the model): a new uint8 array (3, H, W)."""
        mujoco = self._mujoco
        self._gl.make_current()
        every_geom = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, every_geom, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._viewport, self._context)
        return np.ascontiguousarray(self._pixels[::-1].transpose(2, 0, 1))  # (C, H, W), top row first

    def upload_terrain(self) -> None:
        """Sends the model's height fields to OpenGL again; needed after they changed."""
        self._gl.make_current()
        for field in range(self._model.nhfield):
            self._mujoco.mjr_uploadHField(self._model, self._context, field)

    def close(self) -> None:
        """Frees the OpenGL context. Closing twice is allowed."""
        if self._context is None:
            return
        self._gl.make_current()  # the drawing context's textures can only be freed while theirs is current
        self._context.free()
        self._gl.free()
        self._gl = self._context = None
        _open_renderers.discard(self)

    def __del__(self) -> None:
        self.close()
