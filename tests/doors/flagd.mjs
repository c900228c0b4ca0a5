// Every flag is resolved in this process, from the file that `nautilus params export --flagd FILE --watch` writes.
//   FLAGS=flags.json node flagd.mjs resolve | platform        (see platform.mjs)
import { OpenFeature } from '@openfeature/server-sdk';
import { FlagdProvider } from '@openfeature/flagd-provider';
import { main } from './platform.mjs';

const provider = new FlagdProvider({ resolverType: 'in-process', offlineFlagSourcePath: process.env.FLAGS });
await OpenFeature.setProviderAndWait(provider);
await main(OpenFeature.getClient(), { recordsExposures: false });
