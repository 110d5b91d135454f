/** Makes a man page from a commander program: the same texts as `--help`, in the format man(7). */
import type { Argument, Command, Option } from 'commander';
import { exitCodes } from './exit-codes.js';
import { notesFor } from './help.js';

export interface Section {
  title: string;
  paragraphs: string[];
}

/** Of the manual: commands, or administration. */
type ManSection = 1 | 8;

const HEADINGS: Record<ManSection, string> = { 1: 'User Commands', 8: 'System Administration' };

/** The page of a program, with its commands if it has any, followed by `sections`. */
export function manPage(program: Command, section: ManSection, sections: Section[]): string {
  const name = program.name();
  const [summary, ...description] = program.description().split('\n\n');
  const lines = [
    `.TH ${name.toUpperCase()} ${section} "" "Pcow ${program.version() ?? ''}" "${HEADINGS[section]}"`,
    '.SH NAME',
    text(`${name} - ${lowerFirst(summary ?? '').replace(/\.$/, '')}`),
    '.SH SYNOPSIS',
    `.B ${word(name)}`,
    ...(program.commands.length > 0
      ? ['.I command', '[options] [arguments]']
      : [text(program.usage())]),
    ...(description.length === 0 ? [] : ['.SH DESCRIPTION']),
    ...description.flatMap((paragraph) => ['.PP', text(paragraph.replaceAll('\n', ' '))]),
    ...(program.commands.length > 0
      ? ['.SH COMMANDS', ...program.commands.flatMap(commandLines)]
      : ['.SH OPTIONS', ...bodyOf(program)]),
    '.SH EXIT STATUS',
    ...exitCodes.flatMap(({ exit, meaning }) => ['.TP', `.B ${exit}`, text(meaning)]),
    ...sections.flatMap(({ title, paragraphs }) => [
      `.SH ${title.toUpperCase()}`,
      ...paragraphs.flatMap((paragraph) => ['.PP', text(paragraph)]),
    ]),
  ];
  return `.\\" Made by “npm run man” from the help texts in cli/: change those.\n${lines.join('\n')}\n`;
}

function commandLines(command: Command): string[] {
  return [
    `.SS ${word(`${command.name()} ${command.usage()}`)}`,
    text(command.description().split('\n\n')[0] ?? ''),
    ...bodyOf(command),
  ];
}

function bodyOf(command: Command): string[] {
  const notes = notesFor(command);
  const entries = [...command.registeredArguments, ...command.options].filter(
    (entry) => entry.description !== '',
  );
  return [
    ...entries.flatMap((entry) => ['.TP', `.B ${word(term(entry))}`, text(meaning(entry))]),
    ...(notes?.text ?? []).flatMap((paragraph) => ['.PP', text(paragraph)]),
    ...(notes?.examples ?? []).flatMap((example) => [
      '.PP',
      text(`${example.does}:`),
      '.RS',
      `.B ${word(example.command)}`,
      '.RE',
    ]),
  ];
}

function term(entry: Argument | Option): string {
  return 'flags' in entry ? entry.flags : entry.name();
}

function meaning(entry: Argument | Option): string {
  const choices = entry.argChoices === undefined ? '' : ` (${entry.argChoices.join(' or ')})`;
  const preset = typeof entry.defaultValue === 'string' ? `; default: ${entry.defaultValue}` : '';
  return `${entry.description}${choices}${preset}`;
}

/** A line of text. If it began with a dot or a quote, the formatter would treat it as a request. */
function text(line: string): string {
  return escape(line).replace(/^[.']/, '\\&$&');
}

/**
 * Text that users type. As the argument of a request, its quotes would be removed, and the
 * formatter would replace some characters.
 */
function word(line: string): string {
  return escape(line).replace(/["'`^~]/g, (sign) => TYPED_SIGNS[sign] ?? sign);
}

const TYPED_SIGNS: Record<string, string> = {
  '"': '\\(dq',
  "'": '\\(aq',
  '`': '\\(ga',
  '^': '\\(ha',
  '~': '\\(ti',
};

function escape(line: string): string {
  return line.replaceAll('\\', '\\e').replaceAll('-', '\\-');
}

function lowerFirst(line: string): string {
  return line.charAt(0).toLowerCase() + line.slice(1);
}
