/**
 * Every command, including new ones, has what users expect: help with correct examples, an entry in
 * the man page, and completion.
 */
import { readdir, readFile } from 'node:fs/promises';
import test from 'ava';
import type { Command } from 'commander';
import { complete } from '../../cli/completion/candidates.js';
import { notesFor } from '../../cli/output/help.js';
import { pcowImgProgram } from '../../cli/pcow-img-program.js';
import { pcowProgram } from '../../cli/pcow-program.js';

const ROOT = new URL('../../../', import.meta.url);

/** Commands that report what they did or found to programs. */
const FOR_PROGRAMS =
  `info list resize map measure compare convert rebase flatten commit compact diff send receive export import
  rename rm check qemu-args doctor`.split(/\s+/);
/** Commands that may take long. */
const WITH_PROGRESS =
  'delete map measure compare convert rebase flatten commit compact diff send receive export import check'.split(
    ' ',
  );

/** The words of an example that are options of this command, up to the start of another program. */
function optionsIn(example: string, name: string): string[] {
  const own = example
    .split(/ (?:\||&&|>|--) ?/)
    .find((part) => new RegExp(`(^|\\s)pcow(-img)? ${name}( |$)`).test(part));
  return (own ?? '').split(/\s+/).filter((word) => /^--?[a-zA-Z]/.test(word));
}

/** A man page with the characters that a reader sees instead of the formatter's. */
function typed(page: string): string {
  const signs: Record<string, string> = {
    '\\e': '\\',
    '\\(dq': '"',
    '\\(aq': "'",
    '\\(ga': '`',
    '\\(ha': '^',
    '\\(ti': '~',
  };
  return page.replace(/\\(?:e|\((?:dq|aq|ga|ha|ti))/g, (sign) => signs[sign] ?? sign);
}

for (const program of [await pcowProgram(), pcowImgProgram()]) {
  test(`${program.name()}: each command has a summary, and examples with options that it has`, (t) => {
    for (const command of program.commands) {
      const name = command.name();
      t.not(command.summary(), '', name);
      const examples = notesFor(command)?.examples ?? [];
      const own = examples.filter(({ command: line }) =>
        line.includes(`${program.name()} ${name}`),
      );
      t.true(own.length > 0, `${name} has no examples`);
      for (const { command: line, does } of own) {
        t.not(does, '', line);
        const known = command.options.flatMap(({ long, short }) => [long, short]);
        for (const option of optionsIn(line, name))
          t.true(known.includes(option.split('=')[0]), `${line}: ${option}`);
      }
    }
  });

  test(`${program.name()}: each command, option and example is in the man page`, async (t) => {
    const page = (await readFile(new URL(`docs/man/${program.name()}.1`, ROOT), 'utf8')).replaceAll(
      '\\-',
      '-',
    );
    for (const command of program.commands) {
      t.true(page.includes(`.SS ${command.name()} ${command.usage()}`.trimEnd()), command.name());
      for (const { flags } of command.options)
        t.true(page.includes(`.B ${flags}\n`), `${command.name()} ${flags}`);
      for (const { command: line } of notesFor(command)?.examples ?? []) {
        t.true(typed(page).includes(`.B ${line}\n`), line);
      }
    }
  });
}

test('each file of cli/commands is a command of pcow', async (t) => {
  const files = (await readdir(new URL('cli/commands/', ROOT))).map((file) =>
    file.replace(/\.ts$/, ''),
  );
  t.deepEqual((await pcowProgram()).commands.map((command) => command.name()).sort(), files.sort());
});

function has(command: Command, ...longs: string[]): boolean {
  return command.options.some(({ long }) => long != null && longs.includes(long));
}

test('commands with a report have --json, long commands show progress', async (t) => {
  const { commands } = await pcowProgram();
  const named = (names: string[]) => commands.filter((command) => names.includes(command.name()));
  t.is(named(FOR_PROGRAMS).length, FOR_PROGRAMS.length);
  for (const command of named(FOR_PROGRAMS))
    t.true(has(command, '--json', '--output'), command.name());
  t.is(named(WITH_PROGRESS).length, WITH_PROGRESS.length);
  for (const command of named(WITH_PROGRESS)) t.true(has(command, '--progress'), command.name());
});

test('completion knows each command, its options, and the kinds of its arguments', async (t) => {
  const program = await pcowProgram();
  const values = async (...words: string[]) => {
    const { candidates, shells } = await complete(program, words);
    return [...candidates.map(({ value }) => value), ...(shells === null ? [] : [shells])];
  };
  const commands = await values('');
  for (const command of program.commands) {
    const name = command.name();
    t.true(commands.includes(name), name);
    const options = await values(name, '-');
    for (const { long, short } of command.options)
      t.true(options.includes(long ?? short ?? ''), `${name} ${long}`);
    await t.notThrowsAsync(values(name, ''), name);
  }
});
