/**
 * Colours only on a terminal: never in a pipe or a file, whatever CI or the terminal's type say.
 */
import { isatty } from 'node:tty';
import pc from 'picocolors';

export const out = pc.createColors(pc.isColorSupported && isatty(1));
export const err = pc.createColors(pc.isColorSupported && isatty(2));
