"""The code in README.md and docs/: fenced blocks, and commands in the text."""

import ast
import re
from dataclasses import dataclass

from support import ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
LANGUAGES = ('python', 'bash', '')


@dataclass(frozen=True)
class Block:
    """A fenced block, or a command in the text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f'{self.page}:{self.line}'


def blocks_of(text, page):
    """The fenced blocks of a page; the line is the first inside of the fence."""
    found, opened = [], None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith('```'):
            if opened:
                opened[2].append(line)
        elif opened:
            found.append(Block(page, opened[0] + 1, opened[1], '\n'.join(opened[2])))
            opened = None
        else:
            opened = number, line.strip().strip('`'), []
    assert opened is None, f'{page}:{opened[0]}: the block does not end'
    return found


def commands_in_text(text, page):
    """Command lines in the running text, between single backticks."""
    prose = re.sub(r'^```.*?^```', lambda match: re.sub(r'[^\n]', '', match[0]), text, flags=re.M | re.S)
    return [
        Block(page, prose[: match.start()].count('\n') + 1, 'bash', ' '.join(match[1].split()))
        for match in re.finditer(r'`((?:python|bash|make|tools/\w+\.sh|--cfg-options)\s[^`]+)`', prose)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page.read_text(), str(page.relative_to(ROOT)))]
COMMANDS = [block for page in PAGES for block in commands_in_text(page.read_text(), str(page.relative_to(ROOT)))]


def kind_of(block):
    """``'program'``, ``'config'`` (assignments alone), ``'commands'`` or ``'output'``."""
    assert block.language in LANGUAGES, f'{block}: nobody knows how to check {block.language!r}'
    if block.language == 'python':
        body = ast.parse(block.text).body
        return 'config' if all(isinstance(node, ast.Assign) for node in body) else 'program'
    return 'commands' if block.language == 'bash' else 'output'


def whole_config(scope):
    """The config for a framework in the README or docs/own_data.md; pieces are merged into it, too."""
    pages = 'README.md', 'docs/own_data.md'
    (text,) = [block.text for block in BLOCKS if block.page in pages and f"_base_ = '{scope}::" in block.text]
    return text
