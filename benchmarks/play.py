"""How fast the page of `make play` is: python -m benchmarks.play task=coffee-push [key=value ...]

Starts the page's server as a process of its own and drives it over its web socket as a browser would. Keys are those of
`make play`.
"""

import asyncio
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from mbrl.experiment.command import command
from mbrl.experiment.settings import UserError

FRAMES, KEYS = 150, 40


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """Of the process so far, in all its threads."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def hear(channel: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    data = (await channel.receive()).data
    (length,) = struct.unpack("<I", data[:4])
    return json.loads(data[4 : 4 + length])


async def measure(address: str, process: subprocess.Popen[str]) -> None:
    async with aiohttp.ClientSession(address) as client, client.ws_connect("/ws", max_msg_size=0) as channel:

        async def say(do: str, **fields: Any) -> None:
            await channel.send_str(json.dumps({"do": do} | fields))

        async def until(moment: int) -> dict[str, Any]:
            while (told := await hear(channel))["here"] < moment:
                pass
            return told

        still = [0.0] * (await hear(channel))["about"]["actions"]
        await say("speed", value=60)
        await say("hold", action=[1.0, *still[1:]], moving=True, seq=1)
        begun = (await until(10))["here"]  # the first are slower
        clock, cpu = time.monotonic(), cpu_seconds(process)
        frames = (await until(begun + FRAMES))["here"] - begun
        clock, cpu = time.monotonic() - clock, cpu_seconds(process) - cpu
        await say("hold", action=still, moving=False, seq=2)
        print(f"{frames / clock:.1f} decisions a second; {1000 * cpu / frames:.1f} ms of CPU time each", flush=True)

        delays = []
        for key in range(KEYS):
            await asyncio.sleep(0.3)
            begun, seq = time.monotonic(), 10 + 2 * key
            await say("hold", action=[1.0, *still[1:]], moving=True, seq=seq)
            await say("hold", action=still, moving=False, seq=seq + 1)
            while (await hear(channel))["heeded"] < seq:
                pass
            delays.append(1000 * (time.monotonic() - begun))
        print(f"a key is heeded after {median(delays):.0f} ms (median of {KEYS}; worst {max(delays):.0f})")


def main(overrides: list[str]) -> None:
    print("load average", *(f"{load:.1f}" for load in os.getloadavg()), f"on {os.cpu_count()} cores", flush=True)
    line = [sys.executable, "-m", "mbrl.play", *overrides, "port=0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = next((line.strip() for line in process.stdout if line.startswith("http")), None)
            if address is None:
                raise UserError("the page did not open")
            asyncio.run(measure(address, process))
        finally:
            process.terminate()


if __name__ == "__main__":
    command(main)
