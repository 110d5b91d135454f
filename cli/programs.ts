/**
 * The programs by their names. scripts/bundle.ts makes one file of this module and everything it
 * loads, which bundled.cts runs.
 */
import { start } from './start-program.js';

const PROGRAMS = {
  pcow: async (args: string[]) => (await import('./pcow-program.js')).pcowProgram(args[0]),
  'pcow-img': async () => (await import('./pcow-img-program.js')).pcowImgProgram(),
  'mount.fuse.pcow': async () => (await import('./mount-helper-program.js')).mountHelperProgram(),
};

export type ProgramName = keyof typeof PROGRAMS;

/** Runs a program with the arguments of this process, and sets the exit code. */
export function startProgram(name: ProgramName): Promise<void> {
  return start(name, PROGRAMS[name]);
}
