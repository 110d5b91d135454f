/** What a message tells to type: every name and path in it goes through here (test/cli/hints.test.ts looks). */

/** A word for a shell, and then for a program, to read back as it is: a path that begins with a dash is no option. */
export function word(text: string): string {
  const name = text.startsWith('-') ? `./${text}` : text;
  return /^[\w@%+=:,./-]+$/.test(name) ? name : `'${name.replaceAll("'", `'\\''`)}'`;
}
