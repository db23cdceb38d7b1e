#!/usr/bin/env python3
"""Records docs/terminal.svg: a real terminal (tmux) with three panes around a mounted bus, as an animated SVG.

    cargo build && python3 scripts/terminal.py [target/debug]

Commands are typed into the panes; `tmux capture-pane` says what each shows, ten times a second. Each line of a pane
becomes a text that is visible while the terminal showed it. Needs tmux and jq. Everything happens in a temporary
directory and a tmux server of its own; both are removed at the end.
"""
import html
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.path.join(ROOT, "docs", "terminal.svg")
COLUMNS, ROWS = 112, 19
CELL_W, CELL_H = 7.83, 17
INTERVAL_S = 0.1
# How long the last picture stays before it starts again.
PAUSE_S = 3.0
COLORS = ["#3b4252", "#d0616b", "#8fbf7a", "#d9b45b", "#6f9bd1", "#b48ead", "#6fb9c4", "#d8dee9"]
PLAIN, BACKGROUND, BORDER = "#d8dee9", "#1f2430", "#4c566a"
SGR = re.compile(r"\x1b\[([0-9;:]*)m|\x1b\([AB0]|\x0f|\x0e")


def feed(appender, ended):
    """Messages for a second queue, at a rate that rises and falls."""
    number = 0
    while not ended.is_set():
        number += 1
        appender.stdin.write(f"quote {number}\n".encode())
        appender.stdin.flush()
        ended.wait(0.02 + 0.018 * math.sin(time.monotonic() * 1.5))
    appender.stdin.close()


class Terminal:
    """A tmux server with one window."""

    def __init__(self, directory, path):
        self.socket = os.path.join(directory, "tmux")
        self.env = {"PATH": path, "HOME": directory, "TERM": "xterm-256color", "LANG": "C.UTF-8", "TZ": "UTC"}
        with open(os.path.join(directory, "rc"), "w") as rc:
            rc.write("PS1='$ '\n")
        shell = "bash --rcfile rc"
        self("-f", "/dev/null", "new-session", "-d", "-x", str(COLUMNS), "-y", str(ROWS), "-c", directory, shell)
        self("set", "-g", "status", "off")
        self("split-window", "-v", "-l", "8", "-c", directory, shell)
        self("split-window", "-h", "-l", "66", "-t", ":.0", "-c", directory, shell)
        # Panes: 0 above on the left, 1 above on the right, 2 below.

    def __call__(self, *words):
        command = ["tmux", "-S", self.socket, *words]
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True).stdout

    def panes(self):
        text = self("list-panes", "-F", "#{pane_index} #{pane_left} #{pane_top} #{pane_width} #{pane_height}")
        return {int(line.split()[0]): tuple(map(int, line.split()[1:])) for line in text.splitlines()}

    def lines(self, pane):
        return self("capture-pane", "-e", "-p", "-t", f":.{pane}").split("\n")


def spans(line):
    """A captured line as pieces of text with one style each: column, text, colour, background, bold."""
    found, column, style = [], 0, [PLAIN, None, False, False]
    position = 0
    for match in list(SGR.finditer(line)) + [None]:
        text = line[position : match.start() if match else len(line)]
        if text:
            color, background, bold, reverse = style
            if reverse:
                color, background = background or BACKGROUND, color
            found.append((column, text, color, background, bold))
            column += sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
        if match is None:
            return [span for span in found if span[1].strip() or span[3]]
        position = match.end()
        codes = [int(code or 0) for code in re.split("[;:]", match.group(1) or "0")] if match.group(0)[1] == "[" else []
        for code in codes:
            if code == 0:
                style = [PLAIN, None, False, False]
            elif code == 1:
                style[2] = True
            elif code == 2:
                style[0] = "#8892a6"
            elif code == 7:
                style[3] = True
            elif code == 27:
                style[3] = False
            elif code == 22:
                style[2] = False
            elif code == 39:
                style[0] = PLAIN
            elif 30 <= code <= 37:
                style[0] = COLORS[code - 30]
            elif 90 <= code <= 97:
                style[0] = COLORS[code - 90]
            elif 40 <= code <= 47:
                style[1] = COLORS[code - 40]


def script(terminal):
    """What happens, as (time, pane, keys); True is Enter."""
    steps, now = [], 0.4
    def typed(pane, text, pause):
        nonlocal now
        for key in text:
            steps.append((now, pane, key))
            now += 0.035
        steps.append((now + 0.2, pane, True))
        now += 0.2 + pause
    typed(2, "chron-cli top --interval 250ms bus", 1.2)
    typed(1, "tail -f mnt/ticks/messages.jsonl | jq -c '{seq, payload}'", 1.0)
    typed(0, "echo hello > mnt/ticks/append.txt", 1.2)
    typed(0, "seq 3 >> mnt/ticks/append.txt", 1.5)
    typed(0, "chron-cli send bus/ticks bid=61.25", 1.5)
    typed(0, "grep -c . mnt/ticks/messages.txt", 1.8)
    return steps, now


def record(terminal):
    panes = terminal.panes()
    steps, length = script(terminal)
    frames, start = [], time.monotonic()
    while (now := time.monotonic() - start) < length:
        while steps and steps[0][0] <= now:
            _, pane, key = steps.pop(0)
            words = ["Enter"] if key is True else ["-l", key if key != ";" else "\\;"]
            terminal("send-keys", "-t", f":.{pane}", *words)
        frames.append((now, {(pane, row): line for pane in panes for row, line in enumerate(terminal.lines(pane))}))
        time.sleep(max(0, start + len(frames) * INTERVAL_S - time.monotonic()))
    return panes, frames


def svg(panes, frames):
    length = frames[-1][0] + PAUSE_S
    width, height = COLUMNS * CELL_W + 20, ROWS * CELL_H + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="13">',
        "<title>A terminal: messages are appended with echo, followed with tail, and watched with chron-cli top</title>",
        f'<rect width="100%" height="100%" rx="6" fill="{BACKGROUND}"/><g transform="translate(10,10)">',
    ]
    for left, top, columns, rows in panes.values():
        right, bottom = left + columns, top + rows
        if right < COLUMNS:
            x = (right + 0.5) * CELL_W
            out.append(f'<path d="M{x:.1f} {top * CELL_H}V{(bottom + 0.5) * CELL_H:.1f}" stroke="{BORDER}"/>')
        if bottom < ROWS:
            y = (bottom + 0.5) * CELL_H
            out.append(f'<path d="M{left * CELL_W:.1f} {y:.1f}H{(right + 1) * CELL_W:.1f}" stroke="{BORDER}"/>')
    for pane, row in sorted(frames[0][1]):
        left, top, _, _ = panes[pane]
        begin, shown = 0.0, None
        changes = [(now, lines.get((pane, row), "")) for now, lines in frames] + [(None, None)]
        for now, line in changes:
            if line == shown:
                continue
            if shown:
                out.append(text(spans(shown), left, top + row, begin, now, length))
            begin, shown = now, line
    out.append("</g></svg>\n")
    return "\n".join(piece for piece in out if piece)


def text(pieces, left, row, begin, end, length):
    """A line's pieces, visible from `begin` to `end`; without animations the last picture is seen."""
    if not pieces:
        return ""
    y = row * CELL_H
    inner = []
    for column, words, color, background, bold in pieces:
        x = (left + column) * CELL_W
        stripped = words.rstrip() if not background else words
        if background:
            inner.append(f'<rect x="{x:.1f}" y="{y}" width="{len(words) * CELL_W:.1f}" height="{CELL_H}" fill="{background}"/>')
        weight = ' font-weight="bold"' if bold else ""
        inner.append(
            f'<text x="{x:.1f}" y="{y + 13}" textLength="{len(stripped) * CELL_W:.1f}" fill="{color}"{weight} '
            f'xml:space="preserve">{html.escape(stripped, quote=False)}</text>'
        )
    if begin == 0 and end is None:
        return "".join(inner)
    stop = 1 if end is None else end / length
    times, values = ["0"], ["1" if begin == 0 else "0"]
    if begin > 0:
        times.append(f"{begin / length:.4f}")
        values.append("1")
    if end is not None:
        times.append(f"{stop:.4f}")
        values.append("0")
    opacity = 1 if end is None else 0
    return (
        f'<g opacity="{opacity}"><animate attributeName="opacity" dur="{length:.2f}s" repeatCount="indefinite" '
        f'calcMode="discrete" keyTimes="{";".join(times)}" values="{";".join(values)}"/>{"".join(inner)}</g>'
    )


def main():
    programs = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "target", "debug"))
    path = programs + os.pathsep + os.environ["PATH"]
    chron_cli = shutil.which("chron-cli", path=path) or sys.exit("chron-cli is not built: cargo build")
    directory = tempfile.mkdtemp(prefix="chronfs-terminal.")
    mnt = os.path.join(directory, "mnt")
    terminal, appender, ended = None, None, threading.Event()
    try:
        os.mkdir(os.path.join(directory, "bus"))
        os.mkdir(mnt)
        subprocess.run([chron_cli, "send", "bus/ticks", "ask=61.50"], cwd=directory, check=True)
        subprocess.run([chron_cli, "mount", "bus", "mnt"], cwd=directory, check=True)
        command = [chron_cli, "append", "--quiet", "bus/quotes"]
        appender = subprocess.Popen(command, cwd=directory, stdin=subprocess.PIPE)
        threading.Thread(target=feed, args=(appender, ended)).start()
        terminal = Terminal(directory, path)
        time.sleep(0.5)
        panes, frames = record(terminal)
        picture = svg(panes, frames)
        with open(OUT, "w") as out:
            out.write(picture)
        print(f"{shlex.quote(OUT)}: {len(picture) // 1000} kB, {len(frames)} pictures")
    finally:
        ended.set()
        if appender:
            appender.wait()
        if terminal:
            terminal("kill-server")
        subprocess.run([chron_cli, "umount", "--lazy", mnt], check=False)
        if not os.path.ismount(mnt):
            shutil.rmtree(directory)


main()
