/** What commands print on stdout: lines for people, or JSON for programs. */

import { inThisLocale } from './locale.js';

/** One line (or a block of lines) for people. */
export function say(text: string): void {
  process.stdout.write(`${inThisLocale(text)}\n`);
}

/** JSON for programs. Fields are only ever added; times are ISO 8601 in UTC, sizes are bytes. */
export function sayJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
}

/** Local time to the second, as in `ls --time-style=long-iso`. */
export function formatTime(time: Date): string {
  const two = (n: number) => String(n).padStart(2, '0');
  const date = [time.getFullYear(), two(time.getMonth() + 1), two(time.getDate())].join('-');
  return `${date} ${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}
