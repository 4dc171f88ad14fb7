"""Where a result line comes from: GPU, commit and date, without torch."""
import datetime
import os
import subprocess


def nvidia_smi(query: str) -> str:
    """One fact that nvidia-smi knows; "" where it is not there."""
    try:
        index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
        return subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "-i", index], capture_output=True,
                              text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def commit_of(root) -> str:
    if os.environ.get("RAREFY_COMMIT"):
        return os.environ["RAREFY_COMMIT"]
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    except OSError:
        return ""
    return head.stdout.strip() if head.returncode == 0 else ""


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

