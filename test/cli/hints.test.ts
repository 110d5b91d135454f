/**
 * The commands that messages suggest can be typed: every name and path in them is quoted for the
 * shell. Checks all sources.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import ts from 'typescript';
import { word } from '../../src/engine/quote.js';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../../..', import.meta.url));

/**
 * A suggested command, up to an inserted value. A quote, a colon, a comma or a parenthesis ends it.
 */
const COMMAND =
  /(?:^|[^\w./-])(?:pcow|pcow-img|qemu-img|umount|fusermount3|nsenter|losetup|mv|cp|chmod|chgrp|chown|setfacl|mkdir|kill) [^“”":(),]*$/;

/**
 * Values that are not names: numbers, sizes, a pattern that is meant as one, and words that Pcow
 * has made or checked itself.
 */
const NO_NAMES =
  /^(?:pid|pattern|file\.pattern|fitting|size|format|connection|EXAMPLES|DEVICE|(?:sizeArgument|nextSection|formatToken|words\.size)\(.*\))$/s;

/** The title of a process, a request to the kernel, and messages of qemu-img. */
const NO_HINTS = [
  'src/mount/daemon/daemon-process.ts',
  'src/client/control.ts: mv',
  'src/convert/qemu-img.ts: qemu-img ',
];

function* templates(file: string): Generator<{ before: string; value: string }> {
  const source = ts.createSourceFile(
    file,
    readFileSync(path.join(ROOT, file), 'utf8'),
    ts.ScriptTarget.Latest,
    true,
  );
  const found: ts.TemplateExpression[] = [];
  const look = (node: ts.Node): void => {
    if (ts.isTemplateExpression(node)) found.push(node);
    ts.forEachChild(node, look);
  };
  look(source);
  for (const { head, templateSpans } of found) {
    let before = head.text;
    for (const { expression, literal } of templateSpans) {
      yield { before, value: expression.getText() };
      before += `X${literal.text}`;
    }
  }
}

test('every name in a suggested command goes through word()', (t) => {
  let seen = 0;
  for (const directory of ['cli', 'src']) {
    for (const name of readdirSync(path.join(ROOT, directory), {
      recursive: true,
      encoding: 'utf8',
    })) {
      if (!name.endsWith('.ts')) continue;
      const file = path.join(directory, name);
      for (const { before, value } of templates(file)) {
        if (!COMMAND.test(before) || NO_NAMES.test(value)) continue;
        if (NO_HINTS.some((it) => `${file}: ${before}`.startsWith(it))) continue;
        seen += 1;
        t.regex(value, /^word\(/, `${file}: ${before}\${${value}}`);
      }
    }
  }
  t.true(seen > 30, `the pattern finds commands: ${seen}`);
});

test('a shell reads every word back unchanged, and no word looks like an option', async (t) => {
  for (const text of [
    'vm1',
    'a b',
    "it's",
    '$(id)',
    '`id`',
    'a;b',
    'a"b',
    'a\nb',
    '*',
    '~',
    '#x',
    'ä\u{a0}ö',
    '!x',
  ]) {
    const { stdout } = await run('sh', ['-c', `printf %s ${word(text)}`]);
    t.is(stdout, text);
  }
  t.is(word('vm1@one'), 'vm1@one');
  t.is(word('-rf'), './-rf');
  t.is(word('-r f'), "'./-r f'");
});
