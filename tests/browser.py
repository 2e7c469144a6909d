"""Headless Chromium: run it on a page, and hear what its console says."""

import os
import re
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = """
    headless no-sandbox disable-gpu disable-dev-shm-usage no-first-run disable-extensions disable-sync
    disable-background-networking disable-component-update disable-default-apps disable-domain-reliability
    metrics-recording-only hide-scrollbars enable-logging=stderr log-level=0
"""
QUIET = [f"--{flag}" for flag in FLAGS.split()]


def browse(profile, *arguments) -> subprocess.CompletedProcess:
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *map(str, arguments)]
    home = {
        "HOME": str(profile),
        "XDG_CONFIG_HOME": str(profile),
        "XDG_CACHE_HOME": str(profile),
    }  # crash reports, dconf
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=os.environ | home)


def console(process: subprocess.CompletedProcess) -> list[str]:
    return re.findall(r"CONSOLE[:(].*", process.stderr)
