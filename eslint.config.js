import js from '@eslint/js';
import tseslint from 'typescript-eslint';

/** The rooms of src/ that each one may use beside itself. CONTRIBUTING.md has the picture. */
const ROOMS = {
  engine: [],
  images: ['engine'],
  stream: ['engine'],
  registry: ['engine', 'stream'],
  client: ['engine', 'images', 'stream', 'registry'],
  convert: ['engine', 'images', 'client'],
  guest: ['engine', 'images'],
  attach: ['engine'],
  mount: ['engine', 'images', 'attach', 'registry'],
};

/** A rule for the files of one room: an import that leads there is refused. */
function refuses(files, regex, message) {
  return {
    files,
    rules: { 'no-restricted-imports': ['error', { patterns: [{ regex, message }] }] },
  };
}

const rooms = Object.entries(ROOMS).map(([room, used]) => {
  const others = Object.keys(ROOMS).filter((other) => other !== room && !used.includes(other));
  const allowed =
    used.length === 0 ? 'no other room of src' : `${used.map((it) => `src/${it}`).join(', ')}`;
  return refuses(
    [`src/${room}/**/*.ts`],
    `^(\\.\\./)+(cli|scripts|test|${others.join('|')})/`,
    `src/${room} may use ${allowed} (CONTRIBUTING.md, "Where things are")`,
  );
});

export default tseslint.config(
  { ignores: ['dist/', 'docs/api/', 'build/', 'native/', 'node_modules/'] },
  { linterOptions: { reportUnusedDisableDirectives: 'error' } },
  js.configs.recommended,
  {
    files: ['**/*.ts', '**/*.cts'],
    extends: [tseslint.configs.recommendedTypeChecked, tseslint.configs.stylisticTypeChecked],
    languageOptions: {
      parserOptions: { project: './tsconfig.json', tsconfigRootDir: import.meta.dirname },
    },
    rules: {
      eqeqeq: ['error', 'always', { null: 'ignore' }],
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/no-unused-vars': [
        'error',
        { argsIgnorePattern: '^_', varsIgnorePattern: '^_' },
      ],
      '@typescript-eslint/only-throw-error': 'error',
      '@typescript-eslint/restrict-template-expressions': [
        'error',
        { allowNumber: true, allowBoolean: true },
      ],
      '@typescript-eslint/switch-exhaustiveness-check': [
        'error',
        { considerDefaultExhaustiveForUnions: true },
      ],
    },
  },
  ...rooms,
  refuses(
    ['cli/**/*.ts', 'cli/**/*.cts'],
    '^(\\.\\./)+src/(attach|mount/(attach|control|fuse|images|nodes))/|^(\\.\\./)+(scripts|test)/',
    'commands ask a mount by src/client, and begin and end one by src/mount/daemon (CONTRIBUTING.md, "Where things are")',
  ),
  // CommonJS, because Node starts sooner with it.
  { files: ['**/*.cts'], rules: { '@typescript-eslint/no-require-imports': 'off' } },
);
