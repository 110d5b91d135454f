/**
 * The tour of the README as commands with their output: for its test, and for the test on a fresh
 * machine.
 */

export interface Step {
  command: string;
  prints: string;
}

/** The `$` lines of the console blocks, each with the lines below it. */
export function stepsOf(markdown: string): Step[] {
  const blocks = [...markdown.matchAll(/^```console\n(.*?)^```$/gms)].map(
    ([, block]) => block ?? '',
  );
  return blocks.flatMap((block) =>
    block
      .split(/^\$ /m)
      .slice(1)
      .map((text) => {
        const [command = '', ...prints] = text.split('\n');
        return { command, prints: prints.join('\n') };
      }),
  );
}

/**
 * Parts of the output that differ in every run, or on every disk: paths, times, processes, disk
 * use; columns move with them.
 */
export function comparable(text: string, scratch: string): string {
  return text
    .replaceAll(scratch, '/srv/vm')
    .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/g, 'TIME')
    .replace(/process \d+/g, 'process N')
    .replace(/[\d.]+ (KiB|MiB)(?= +\d)/g, 'N')
    .replace(/ +/g, ' ');
}
