"""A real browser without a screen: Chromium, driven by its DevTools protocol over pipes, without another package."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
WHY_NOT = 'no Chromium in PATH: apt-get install chromium'
_FLAGS = (
    '--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars'.split()
)


class Browser:
    """One page in a browser.

    Attributes:
        requests: The URLs that pages asked for.
        complaints: Errors and warnings of the console, and uncaught exceptions.
    """

    def __init__(self, profile: Path):
        (to_read, self._write), (self._read, to_write) = os.pipe(), os.pipe()
        # The browser expects file descriptors 3 and 4; those of the pipes must not be in the way.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_read, to_write)]
        flags = [*_FLAGS, '--remote-debugging-pipe', f'--user-data-dir={profile}', 'about:blank']
        command = f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}'
        self._process = subprocess.Popen(
            ['bash', '-c', command, CHROMIUM, *flags],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_read, to_write, *ends):
            os.close(end)
        self._received, self._number, self._loads, self._session = b'', 0, 0, None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        pages = self._call('Target.getTargets')['targetInfos']
        page = next(each['targetId'] for each in pages if each['type'] == 'page')
        self._session = self._call('Target.attachToTarget', targetId=page, flatten=True)['sessionId']
        for domain in ('Page', 'Network', 'Runtime', 'Log'):
            self._call(f'{domain}.enable')

    def open(self, page: Path, fragment: str = '', width: int = 1200, dark: bool = False) -> None:
        """Open a file, and wait until it is loaded."""
        scheme = [{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}]
        self._call('Emulation.setEmulatedMedia', features=scheme)
        size = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': width < 600}
        self._call('Emulation.setDeviceMetricsOverride', **size)
        address = page.resolve().as_uri() + (f'#{fragment}' if fragment else '')
        for url in ('about:blank', address):  # without the first, only the fragment may change
            before = self._loads
            self._call('Page.navigate', url=url)
            while self._loads == before:
                self._next()

    def __call__(self, script: str) -> Any:
        """The value of an expression in JavaScript."""
        answer = self._call('Runtime.evaluate', expression=script, returnByValue=True)
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call('Page.captureScreenshot', format='png')['data']))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def _send(self, method: str, **parameters: Any) -> int:
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': parameters}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._write, json.dumps(message).encode() + b'\0')
        return self._number

    def _call(self, method: str, **parameters: Any) -> dict:
        number = self._send(method, **parameters)
        while (answer := self._next()).get('id') != number:
            pass
        assert 'error' not in answer, answer
        return answer['result']

    def _next(self) -> dict:
        while b'\0' not in self._received:
            assert select.select([self._read], [], [], 60)[0], 'the browser does not answer'
            part = os.read(self._read, 1 << 20)
            assert part, 'the browser has ended'
            self._received += part
        message, _, self._received = self._received.partition(b'\0')
        content = json.loads(message)
        told = content.get('params') or {}
        self._loads += content.get('method') == 'Page.loadEventFired'
        if content.get('method') == 'Network.requestWillBeSent':
            self.requests.append(told['request']['url'])
        elif content.get('method') in ('Runtime.exceptionThrown', 'Log.entryAdded'):
            self.complaints.append(json.dumps(told))
        elif content.get('method') == 'Page.javascriptDialogOpening':  # the page waits until it is closed
            self.complaints.append(json.dumps(told))
            self._send('Page.handleJavaScriptDialog', accept=False)
        elif content.get('method') == 'Runtime.consoleAPICalled':
            self.complaints.append(json.dumps(told['args']))
        return content
