/**
 * Candidates for the end of an unfinished command line. They come from the program itself, so
 * nothing is written twice.
 */
import type { Argument, Command, Option } from 'commander';
import { imageCandidates, mountpointCandidates, snapshotCandidates } from './image-candidates.js';

export interface Candidate {
  /** The whole word; a word that ends in “/” or “@” can be continued. */
  value: string;
  /** May be empty. */
  description: string;
}

/** Candidates that the shell itself completes better. */
export type ShellsOwn = 'files' | 'directories' | 'commands';

export interface Completion {
  candidates: Candidate[];
  shells: ShellsOwn | null;
}

/** `words`: those after the program's name. The last one, which may be empty, is being typed. */
export async function complete(program: Command, words: string[]): Promise<Completion> {
  const current = words.at(-1) ?? '';
  const before = words.slice(0, -1);
  const at = before.findIndex((word) => !word.startsWith('-'));
  const name = before[at];
  if (name === undefined || (name === 'help' && at === before.length - 1)) {
    return matching(
      current,
      current.startsWith('-') ? optionsOf(program, []) : commandsOf(program),
    );
  }
  const command = program.commands.find((known) => known.name() === name);
  return command === undefined ? nothing : argumentsOf(command, before.slice(at + 1), current);
}

const nothing: Completion = { candidates: [], shells: null };

async function argumentsOf(
  command: Command,
  before: string[],
  current: string,
): Promise<Completion> {
  let positional = 0;
  let pending: Option | undefined;
  let optionsEnded = false;
  for (const word of before) {
    if (pending) pending = undefined;
    else if (word === '--' && !optionsEnded) optionsEnded = true;
    else if (word.startsWith('-') && !optionsEnded) pending = takingNextWord(command, word);
    else positional += 1;
  }
  if (pending) return valuesOf(pending, pending.flags, current);
  const assigned = optionsEnded ? null : /^(--[^=]+)=(.*)$/s.exec(current);
  if (assigned?.[1] !== undefined) {
    const [, flag, value = ''] = assigned;
    const option = command.options.find(({ long }) => long === flag);
    const { candidates } = option ? await valuesOf(option, option.flags, value) : nothing;
    return {
      candidates: candidates.map((it) => ({ ...it, value: `${flag}=${it.value}` })),
      shells: null,
    };
  }
  if (current.startsWith('-') && !optionsEnded)
    return matching(current, optionsOf(command, before));
  const all = command.registeredArguments;
  const last = all.at(-1);
  const argument = all[positional] ?? (last?.variadic === true ? last : undefined);
  return argument === undefined ? nothing : valuesOf(argument, argument.name(), current);
}

/** The option that this word is, if its value is the next word. */
function takingNextWord(command: Command, word: string): Option | undefined {
  const option = command.options.find(({ long, short }) => word === long || word === short);
  return option?.required === true ? option : undefined;
}

/** `placeholder` is the name of the value in the help, which says what kind of value it is. */
async function valuesOf(
  of: Argument | Option,
  placeholder: string,
  current: string,
): Promise<Completion> {
  if (of.argChoices !== undefined) {
    return matching(
      current,
      of.argChoices.map((value) => ({ value, description: '' })),
    );
  }
  if (/image.*@/.test(placeholder))
    return { candidates: await snapshotCandidates(current), shells: null };
  if (/image|base/.test(placeholder))
    return { candidates: await imageCandidates(current), shells: null };
  if (placeholder.includes('mountpoint'))
    return { candidates: await mountpointCandidates(current), shells: 'directories' };
  if (placeholder.includes('where'))
    return { candidates: await imageCandidates(current), shells: 'directories' };
  if (/dir|new/.test(placeholder)) return { candidates: [], shells: 'directories' };
  if (placeholder.includes('command')) return { candidates: [], shells: 'commands' };
  if (/size|number|name|id|count|rate|seconds/.test(placeholder)) return nothing;
  return { candidates: [], shells: 'files' };
}

function commandsOf(program: Command): Candidate[] {
  const help = { value: 'help', description: 'show the help of a command' };
  return [
    ...program.commands.map((command) => ({
      value: command.name(),
      description: command.summary(),
    })),
    help,
  ];
}

/** The options that are not on the command line yet. */
function optionsOf(command: Command, before: string[]): Candidate[] {
  const own = command.options.filter(({ long, short, hidden }) => {
    return !hidden && ![long, short].some((flag) => flag != null && before.includes(flag));
  });
  return [
    ...own.map(({ long, short, description }) => ({ value: long ?? short ?? '', description })),
    { value: '--help', description: 'show the help' },
  ];
}

function matching(current: string, candidates: Candidate[]): Completion {
  return { candidates: candidates.filter(({ value }) => value.startsWith(current)), shells: null };
}
