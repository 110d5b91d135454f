/** Text of any origin in messages. (Names of images: src/images/image-names.ts, of snapshots: src/engine/validate.ts.) */

export { word } from '../src/engine/shell-word.js';

/** Text on one line, in quotes: control characters are shown as escapes, long text is cut. */
export function quote(text: string): string {
  const shown = text.length > 80 ? `${text.slice(0, 77)}...` : text;
  // JSON escapes the C0 controls; a terminal may act on DEL and the C1 controls as well.
  return JSON.stringify(shown).replace(
    /[\u007f-\u009f\u2028\u2029]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}
