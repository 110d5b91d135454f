/**
 * Formats arbitrary text in messages. (Names of images: src/images/image-names.ts; of snapshots:
 * src/engine/validate.ts.)
 */

/** Text on one line, in quotes: control characters are escaped, long text is truncated. */
export function quote(text: string): string {
  const shown = text.length > 80 ? `${text.slice(0, 77)}...` : text;
  // JSON escapes the C0 controls; a terminal may interpret DEL and the C1 controls, too.
  return JSON.stringify(shown).replace(
    /[\u007f-\u009f\u2028\u2029]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

/**
 * Quotes a word so that a shell, and then a program, reads it back unchanged: a path that begins
 * with a dash is not taken for an option. Every name and path in a command that a message suggests
 * goes through this function (test/cli/hints.test.ts checks that).
 */
export function word(text: string): string {
  const name = text.startsWith('-') ? `./${text}` : text;
  return /^[\w@%+=:,./-]+$/.test(name) ? name : `'${name.replaceAll("'", `'\\''`)}'`;
}
