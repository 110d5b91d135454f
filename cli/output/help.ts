/**
 * Help texts: `--help` and the man pages use them. Each is written once, in the command's own file.
 */
import type { Command } from 'commander';

/** A shell command and what it does. */
export interface Example {
  command: string;
  does: string;
}

/** The parts of a command's help in addition to its arguments and options. */
export interface Notes {
  /** Paragraphs. */
  text?: string[];
  examples: Example[];
}

const notesOf = new WeakMap<Command, Notes>();

/** Adds paragraphs and examples to a command. */
export function addNotes(command: Command, notes: Notes): void {
  notesOf.set(command, notes);
  const paragraphs = (notes.text ?? []).map((paragraph) => `\n${wrap(paragraph)}\n`).join('');
  const width = Math.max(...notes.examples.map((example) => example.command.length));
  const examples = notes.examples
    .map(({ command: line, does }) => `  ${line.padEnd(width)}  ${does}`)
    .join('\n');
  command.addHelpText('after', `${paragraphs}\nExamples:\n${examples}`);
}

/** The notes that `addNotes` got. */
export function notesFor(command: Command): Notes | undefined {
  return notesOf.get(command);
}

function wrap(text: string, width = 80): string {
  const lines: string[] = [''];
  for (const word of text.split(' ')) {
    const line = lines.at(-1) ?? '';
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(word);
    } else {
      lines[lines.length - 1] = line === '' ? word : `${line} ${word}`;
    }
  }
  return lines.join('\n');
}
