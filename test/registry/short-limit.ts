/** To be imported first: tests do not wait a minute for a registry that says nothing. */
process.env.PCOW_REGISTRY_LIMIT = '2';
